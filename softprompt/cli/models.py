"""`softprompt models`: base models on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.options import JsonOption, example
from softprompt.cli.output import print_json, stderr
from softprompt.cli.requirements import require

app = typer.Typer(no_args_is_help=True)


@app.callback()
def models() -> None:
    """Base models on this machine."""


@app.command(epilog=example("softprompt models pull smollm2-135m-instruct"))
def pull(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Catalogued models, model directories, or hub ids with a revision: [ID=]OWNER/MODEL[@COMMIT]. Commas separate, too.",
        ),
    ],
    to: Annotated[Path | None, typer.Option(help="Parent directory; left out: $SOFTPROMPT_MODELS or the user's cache.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Get base models, each once; prints their directories. A model is stored under its ID, else under the last part of its name."""
    require("inference")
    from softprompt.model_names import parse_models

    for model in parse_models(names):
        path = pull_with_progress(str(model), to)
        if as_json:
            print_json({"name": str(model), "path": str(path)})
        else:
            typer.echo(str(path))


@app.command(epilog=example("softprompt models fingerprint ./models/my-model"))
def fingerprint(directory: Annotated[Path, typer.Argument(help="A model directory with config.json and *.safetensors.")]) -> None:
    """Hash a model directory once and write the fingerprint into it, for images and volumes that are mounted read-only."""
    require("inference")
    from shared.errors import InvalidInput
    from shared.model import fingerprint as fingerprints

    if not (directory / "config.json").is_file():
        raise InvalidInput.of("directory", f"{directory} has no config.json: it is no model directory")
    try:
        typer.echo(fingerprints.ship(directory).fingerprint)
    except OSError as error:
        raise InvalidInput.of("directory", f"the fingerprint can't be written into {directory}: {error.strerror}") from error


def pull_with_progress(name: str, to: Path | None = None) -> Path:
    """The directory of a model, pulled if it isn't there, with a bar on a terminal."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from softprompt.models import models_dir
    from softprompt.models import pull as pull_model

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), disable=not stderr().is_terminal, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(f"{name}: {stage}", total=total)
            bar.update(tasks[stage], completed=done, total=total)

        return pull_model(name, to or models_dir(), progress)
