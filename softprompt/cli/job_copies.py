"""`softprompt jobs clone` and `softprompt jobs continue`: another job like one that there is already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.options import JsonOption, TrainerOption, example, job_name, open_client
from softprompt.cli.output import print_json, show, stderr
from softprompt.types.tuning import Hyperparameters, PublishPolicy

if TYPE_CHECKING:
    from softprompt.client.sync_client import Client
    from softprompt.types.tuning import TuningJob

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="tuningJobs/<id>, or the id.")]
Data = Annotated[str | None, typer.Option(help="Other examples: a file, a dataset name or a URI.")]
Validation = Annotated[str | None, typer.Option(help="Other held-out examples, likewise.")]
PromptName = Annotated[str | None, typer.Option(help="Publish under another name.")]
Alias = Annotated[str | None, typer.Option(help="Alias that is moved to the new version; - for none.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
BatchSize = Annotated[int | None, typer.Option(help="Examples a step.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data, instead of steps.")]
VirtualTokens = Annotated[int | None, typer.Option(help="Length of the soft prompt.")]
Seed = Annotated[int | None, typer.Option(help="Seed of init, shuffling and splitting.")]
Priority = Annotated[int | None, typer.Option(help="Higher goes first, -100 to 100.")]
Follow = Annotated[bool, typer.Option(help="Show the progress and wait for the end. Ctrl-C lets go; the job goes on.")]


def register(app: typer.Typer) -> None:
    app.command(epilog=example("softprompt jobs clone 01jd3v8e --learning-rate 0.1 --prompt tone-b"))(clone)
    app.command("continue", epilog=example("softprompt jobs continue 01jd3v8e --data more.jsonl"))(continue_)


def clone(
    job: JobArgument,
    data: Data = None,
    validation: Validation = None,
    prompt: PromptName = None,
    alias: Alias = None,
    virtual_tokens: VirtualTokens = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    steps: Steps = None,
    epochs: Epochs = None,
    seed: Seed = None,
    priority: Priority = None,
    follow: Follow = True,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Queue the same job again, with what you give changed."""
    hyperparameters = Hyperparameters(
        num_virtual_tokens=virtual_tokens, learning_rate=learning_rate, batch_size=batch_size, num_steps=steps, num_epochs=epochs, seed=seed
    )
    with open_client(trainer) as client:
        changes = _changes(client, job_name(job), data, validation, prompt, alias, priority)
        _tell(client, client.clone_job(job_name(job), hyperparameters=hyperparameters, **changes), follow, as_json)


def continue_(
    job: JobArgument,
    data: Data = None,
    validation: Validation = None,
    prompt: PromptName = None,
    alias: Alias = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    steps: Steps = None,
    epochs: Epochs = None,
    priority: Priority = None,
    follow: Follow = True,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Train on from what a job has made: its version, or the best prompt of one that was cancelled or failed."""
    hyperparameters = Hyperparameters(learning_rate=learning_rate, batch_size=batch_size, num_steps=steps, num_epochs=epochs)
    with open_client(trainer) as client:
        changes = _changes(client, job_name(job), data, validation, prompt, alias, priority)
        _tell(client, client.continue_job(job_name(job), hyperparameters=hyperparameters, **changes), follow, as_json)


def _changes(
    client: Client, name: str, data: str | None, validation: str | None, prompt: str | None, alias: str | None, priority: int | None
) -> dict[str, Any]:
    """Fields of the spec that are to be others than those of the job."""
    from dataclasses import replace

    from softprompt.cli.data import read_examples
    from softprompt.data.prepare import VALIDATION_DATASET
    from softprompt.types.data import Data

    changes: dict[str, Any] = {}
    if data is not None:
        changes["dataset"] = read_examples(data, Data(""), ())
    if validation is not None:
        changes["validation_dataset"] = read_examples(validation, Data(""), (), VALIDATION_DATASET)
    if prompt is not None:
        changes["prompt"] = prompt
    if priority is not None:
        changes["priority"] = priority
    if alias is not None:
        spec = client.get_job(name).spec
        changes["publish"] = replace((spec.publish if spec is not None else None) or PublishPolicy(), alias=alias)
    return changes


def _tell(client: Client, job: TuningJob, follow: bool, as_json: bool) -> None:
    from softprompt.cli.following import follow as follow_job

    if follow:
        stderr().print(f"{job.name} is queued", markup=False)
        follow_job(client, job.name, as_json=as_json)
    elif as_json:
        print_json(job)
    else:
        show(job.name)
