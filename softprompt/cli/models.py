"""`softprompt models`: base models on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.failures import require
from softprompt.cli.model_list import list_
from softprompt.cli.options import JsonOption, example
from softprompt.cli.output import show_or_json, stderr

app = typer.Typer(no_args_is_help=True)
_STAGES = {"wait": "waiting for another process that pulls it", "download": "downloading", "convert": "converting"}
NamesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...",
        help="Catalogued models, model directories or hub ids: [ID=]OWNER/MODEL[@COMMIT]. Commas separate several. "
        "@sha256:FINGERPRINT requires certain files.",
    ),
]
ToOption = Annotated[
    Path | None, typer.Option(help="Parent directory. Default: $SOFTPROMPT_MODELS or the user's cache.")
]
DirectoryArgument = Annotated[Path, typer.Argument(help="A model directory with config.json and *.safetensors.")]


@app.command(epilog=example("softprompt models pull smollm2-135m-instruct"))
def pull(
    names: NamesArgument,
    to: ToOption = None,
    server: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="URL",
            envvar="SOFTPROMPT_MODELS_FROM",
            help="A file server's directory that has the models, each with its manifest, in place of the hub.",
        ),
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Token for gated and private models. Default: $HF_TOKEN, for the hub only."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download base models that are missing; print their directories. Each directory is named ID, or after the last
    part of the name. HF_ENDPOINT names another hub, such as a mirror.
    """
    require("inference")
    from softprompt.model_catalogue import CATALOGUE
    from softprompt.model_folder import check_whole
    from softprompt.model_names import parse_models

    token = _token(token_file)
    for model in parse_models(names, local=not server):
        try:
            path = pull_with_progress(str(model), to, server=server, token=token)
        except KeyboardInterrupt:
            stderr().print(f"interrupted: {model} is not ready; pull it again", markup=False)
            raise
        if not (server or model.is_hub_id or model.name in CATALOGUE):  # a directory, which is taken as it is
            check_whole(path)
        show_or_json({"name": str(model), "path": str(path)}, str(path), as_json)


@app.command(epilog=example("softprompt models wait smollm2-135m-instruct --to /models"))
def wait(
    names: NamesArgument,
    to: ToOption = None,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Longest time to wait.")] = 3600,
    as_json: JsonOption = False,
) -> None:
    """Wait until another process has pulled base models completely; print their directories. Writes nothing, so the
    parent directory may be mounted read-only. Exits with 5 after the time limit.
    """
    require("inference")
    from softprompt.model_catalogue import models_dir
    from softprompt.model_folder import is_complete, wait_until_complete
    from softprompt.model_names import parse_models

    wanted, parent = parse_models(names, local=False), to or models_dir()
    missing = [str(model) for model in wanted if not is_complete(parent / model.directory)]
    if missing:
        stderr().print(f"waiting for {', '.join(missing)} in {parent}", markup=False, soft_wrap=True)
    for model, path in zip(wanted, wait_until_complete(wanted, parent, timeout), strict=True):
        show_or_json({"name": str(model), "path": str(path)}, str(path), as_json)


@app.command(epilog=example("softprompt models manifest ./models/my-model"))
def manifest(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """Write the manifest of a model directory into it, with the digest of each file, for `models pull --from` of a
    file server that serves its parent directory. Prints the fingerprint.
    """
    require("inference")
    from shared.errors import InvalidInput
    from softprompt.model_folder import origin_of
    from softprompt.model_server import write_manifest

    _check_directory(directory)
    origin = origin_of(directory)
    try:
        made = write_manifest(directory, *((origin.hub_id, origin.commit) if origin is not None else ("", "")))
    except OSError as error:
        raise InvalidInput.of("directory", f"can't write the manifest into {directory}: {error.strerror}") from error
    show_or_json(made.model_dump(), made.fingerprint, as_json)


app.command("list", epilog=example("softprompt models list"))(list_)


@app.command(epilog=example("softprompt models fingerprint ./models/my-model"))
def fingerprint(directory: DirectoryArgument) -> None:
    """Hash a model directory and store the fingerprint in it, for images and volumes that are mounted read-only."""
    require("inference")
    from shared.errors import InvalidInput
    from shared.model import fingerprint as fingerprints

    _check_directory(directory)
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
    from softprompt.manifests import as_yaml, of_models, why_no_object

    try:
        entries, content = ModelsFile(file).entries, file.read_text()
    except ConfigError as error:
        raise InvalidInput.of("file", str(error)) from None
    source = "standard input" if str(overlay) == "-" else str(overlay)
    try:
        text = sys.stdin.read() if str(overlay) == "-" else overlay.read_text()
        documents = list(yaml.safe_load_all(text))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else str(error).splitlines()[0]
        raise InvalidInput.of("overlay", f"{source} can't be read as YAML: {where}") from None
    for number, document in enumerate(documents, 1):
        if document is not None and (problem := why_no_object(document)):
            expected = "must consist of Kubernetes objects, as `kubectl kustomize OVERLAY` prints"
            raise InvalidInput.of("overlay", f"{expected}: document {number} of {source} {problem}")
    objects = [document for document in documents if document is not None]
    typer.echo(as_yaml(of_models(objects, entries, content)), nl=False)


def pull_with_progress(name: str, to: Path | None = None, *, server: str = "", token: str = "") -> Path:
    """The directory of a model, which is downloaded if it is missing, with progress on stderr. See `models.pull`."""
    from softprompt.display.transfer import transfer_display
    from softprompt.model_catalogue import models_dir
    from softprompt.models import pull as pull_model

    with transfer_display(stderr(), f"{name}: looking for the model") as show:
        return pull_model(
            name,
            to or models_dir(),
            lambda stage, done, total: show(f"{name}: {_STAGES[stage]}", done, total),
            server=server,
            token=token,
        )


def _check_directory(directory: Path) -> None:
    from shared.errors import InvalidInput
    from softprompt.model_folder import is_model

    if not is_model(directory):
        raise InvalidInput.of("directory", f"{directory} is not a model directory: it has no config.json")


def _token(file: Path | None) -> str:
    """The token in a file; empty without a file. Raises InvalidInput."""
    from shared.errors import InvalidInput

    if file is None:
        return ""
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput.of("token-file", f"{file} can't be read: {reason}") from error
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidInput.of("token-file", f"{file} must contain one token and nothing else")
    return token
