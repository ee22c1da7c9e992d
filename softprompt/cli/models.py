"""`softprompt models`: base models on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.model_list import list_
from softprompt.cli.options import JsonOption, example
from softprompt.cli.output import print_json, stderr
from softprompt.cli.requirements import require

app = typer.Typer(no_args_is_help=True)
_STAGES = {"wait": "waiting for another process that pulls it", "download": "downloading", "convert": "converting"}


@app.callback()
def models() -> None:
    """Base models on this machine."""


@app.command(epilog=example("softprompt models pull smollm2-135m-instruct"))
def pull(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Catalogued models, model directories or hub ids: [ID=]OWNER/MODEL[@COMMIT]. Commas separate several.",
        ),
    ],
    to: Annotated[
        Path | None, typer.Option(help="Parent directory. Default: $SOFTPROMPT_MODELS or the user's cache.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download base models that are missing; print their directories. Each directory is named ID, or after the last
    part of the name.
    """
    require("inference")
    from softprompt.model_names import parse_models

    for model in parse_models(names):
        path = pull_with_progress(str(model), to)
        if as_json:
            print_json({"name": str(model), "path": str(path)})
        else:
            typer.echo(str(path))


app.command("list", epilog=example("softprompt models list"))(list_)


@app.command(epilog=example("softprompt models fingerprint ./models/my-model"))
def fingerprint(
    directory: Annotated[Path, typer.Argument(help="A model directory with config.json and *.safetensors.")],
) -> None:
    """Hash a model directory and store the fingerprint in it, for images and volumes that are mounted read-only."""
    require("inference")
    from shared.errors import InvalidInput
    from shared.model import fingerprint as fingerprints

    if not (directory / "config.json").is_file():
        raise InvalidInput.of("directory", f"{directory} is not a model directory: it has no config.json")
    try:
        typer.echo(fingerprints.ship(directory).fingerprint)
    except OSError as error:
        raise InvalidInput.of("directory", f"can't write the fingerprint into {directory}: {error.strerror}") from error


@app.command(epilog=example("softprompt models manifests ha.yaml --file models.json > deployment.yaml"))
def manifests(
    file: Annotated[Path, typer.Option(help="The models file (docs/models.md).")],
    overlay: Annotated[
        Path, typer.Argument(metavar="[OVERLAY]", help="A rendered overlay; `-` reads standard input.")
    ] = Path("-"),
) -> None:
    """Print an overlay's Kubernetes objects with one Deployment, autoscaler and group of Ray nodes for each base model
    of a models file.
    """
    require("inference")
    import yaml

    from shared.config import ConfigError
    from shared.errors import InvalidInput
    from shared.model.models_file import ModelsFile
    from softprompt.manifests import of_models

    try:
        entries, content = ModelsFile(file).entries, file.read_text()
    except ConfigError as error:
        raise InvalidInput.of("file", str(error)) from None
    try:
        text = sys.stdin.read() if str(overlay) == "-" else overlay.read_text()
        objects = [item for item in yaml.safe_load_all(text) if item]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput.of("overlay", f"can't be read as YAML: {str(error).splitlines()[0]}") from None
    if not all(isinstance(item, dict) and "kind" in item and "name" in item.get("metadata", {}) for item in objects):
        raise InvalidInput.of("overlay", "must consist of Kubernetes objects: give what `kubectl kustomize` prints")
    typer.echo(yaml.safe_dump_all(of_models(objects, entries, content), sort_keys=False), nl=False)


def pull_with_progress(name: str, to: Path | None = None) -> Path:
    """The directory of a model. Downloads it if it is missing, with progress on stderr."""
    from softprompt.display.transfer import transfer_display
    from softprompt.models import models_dir
    from softprompt.models import pull as pull_model

    with transfer_display(stderr(), f"{name}: looking for the model") as show:
        return pull_model(
            name, to or models_dir(), lambda stage, done, total: show(f"{name}: {_STAGES[stage]}", done, total)
        )
