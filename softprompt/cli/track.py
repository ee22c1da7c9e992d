"""`softprompt jobs track`: write a job's curves to an experiment tracker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.failures import EXIT_INTERRUPTED, EXIT_INVALID, Failure
from softprompt.cli.job_options import JobArgument, job_name
from softprompt.cli.options import TrainerOption, example, open_client
from softprompt.cli.output import stderr

if TYPE_CHECKING:
    from softprompt.tracking.entries import Sink

app = typer.Typer()

DEFAULT_PROJECT = "softprompt"


class Target(StrEnum):
    """Trackers; each is an extra of the same name."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"
    WANDB = "wandb"


@app.command(epilog=example("softprompt jobs track 8q1r4s7t --to tensorboard --directory runs"))
def track(
    job: JobArgument,
    to: Annotated[Target, typer.Option(help="Where to write the curves.")],
    directory: Annotated[
        Path, typer.Option(help="Folder for the files of TensorBoard, or of Weights & Biases.")
    ] = Path("runs"),
    project: Annotated[
        str, typer.Option(help="Experiment of MLflow, or project of Weights & Biases.")
    ] = DEFAULT_PROJECT,
    trainer: TrainerOption = None,
) -> None:
    """Follow a job until it ends and write its curves, settings and result to TensorBoard, MLflow or Weights & Biases.

    Run it again to continue after an interruption: no point is written twice.
    """
    from softprompt.tracking.entries import JobTracker

    with open_client(trainer) as client, _own_errors(to):
        name = job_name(client, job)
        client.get_job(name)  # an unknown job leaves no run behind
        sink = _sink(to, name, directory, project)
        try:
            tracker = JobTracker(sink)
            for event in client.watch_job(name, after=sink.last_event):
                tracker(event)
        except KeyboardInterrupt:
            stopped = f"stopped tracking {name}; the job continues"
            raise Failure(stopped, EXIT_INTERRUPTED, "run the same command to continue") from None
        finally:
            sink.close()
    stderr().print(f"{name} is tracked up to event {sink.last_event}", markup=False)


@contextmanager
def _own_errors(to: Target) -> Iterator[None]:
    """An error of the tracker's package is neither ours nor a bug."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] != to.value:
            raise
        raise Failure(f"{to.value}: {error}", hint="run the same command to continue") from error


def _sink(to: Target, name: str, directory: Path, project: str) -> Sink:
    try:
        match to:
            case Target.TENSORBOARD:
                from softprompt.tracking.tensorboard import TensorBoardSink

                return TensorBoardSink(name, directory)
            case Target.MLFLOW:
                from softprompt.tracking.mlflow import MlflowSink

                return MlflowSink(name, project)
            case Target.WANDB:
                from softprompt.tracking.wandb import WandbSink

                return WandbSink(name, project, directory)
    except ImportError as error:
        reason = f"--to {to.value} needs a package that is not installed ({error.name or error})"
        raise Failure(f"{reason}: pip install 'softprompt[{to.value}]'", EXIT_INVALID) from error
