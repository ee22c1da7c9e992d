"""The directory of a downloaded model: what it was downloaded from, and the mark that it is complete.

The mark is the fingerprint beside the weights (`shared.model.fingerprint`). It is written last, read-only, and saves
the services from hashing the weights at each start.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.directories import sync_directory
from shared.errors import DeadlineExceeded, NotFound, PreconditionFailed, Unavailable
from shared.model import fingerprint
from shared.model.model_files import check_files
from softprompt.model_names import WantedModel

ORIGIN_FILE = ".softprompt-origin.json"
"""File that names the model and its commit; not in a directory of a catalogued model."""
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "tekken.json")
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Origin:
    """What a directory was downloaded from. `revision`: as it was asked for; `commit`: what it was then."""

    hub_id: str
    revision: str
    commit: str

    def write(self, directory: Path) -> None:
        """Store it in the directory. Raises OSError."""
        (directory / ORIGIN_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")


def origin_of(directory: Path) -> Origin | None:
    """None for a catalogued model or another program's. Raises PreconditionFailed if it is damaged, OSError."""
    try:
        found = json.loads((directory / ORIGIN_FILE).read_bytes())
        return Origin(str(found["hub_id"]), str(found["revision"]), str(found["commit"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{directory / ORIGIN_FILE} can't be read: remove {directory} and pull again"
        raise PreconditionFailed(reason) from error


def is_model(directory: Path) -> bool:
    """Whether this looks like the directory of a model."""
    return (directory / "config.json").is_file()


def is_there(wanted: WantedModel, directory: Path) -> bool:
    """Whether the model is there. Raises PreconditionFailed for another model or fingerprint, another or an unknown
    revision, or a part.
    """
    if not is_model(directory):
        return False
    if not is_complete(directory):
        check_whole(directory)
    origin = origin_of(directory)
    if origin is None and wanted.revision:
        advice = "pull it again under another name, ID=NAME@REVISION, or ask for it by its @sha256:FINGERPRINT"
        raise PreconditionFailed(f"{directory} does not say which commit of {wanted.name} it has: {advice}")
    if origin is not None and origin.hub_id != wanted.name:
        advice = "store one of them under another name, ID=NAME"
        raise PreconditionFailed(f"{directory} has {origin.hub_id} and not {wanted.name}: {advice}")
    if origin is not None and wanted.revision not in ("", origin.revision, origin.commit):
        raise PreconditionFailed(
            f"{directory} has {origin.hub_id} at commit {origin.commit} and not at {wanted.revision}: store this "
            "revision under another name, ID=NAME@REVISION, because prompts belong to the weights that they were "
            "tuned on"
        )
    check_fingerprint(wanted, directory)
    return True


def check_fingerprint(wanted: WantedModel, directory: Path) -> None:
    """Raises PreconditionFailed if the model was asked for with another fingerprint than its files have."""
    if wanted.fingerprint and (found := fingerprint.of(directory).fingerprint) != wanted.fingerprint:
        raise PreconditionFailed(f"{wanted.name} in {directory} has the fingerprint {found}, not {wanted.fingerprint}")


def check_whole(directory: Path) -> None:
    """Raises PreconditionFailed if files of a model are missing or cut short. Reads only the headers of weights."""
    problem = ""
    try:
        check_files(directory, directory.name)
    except (NotFound, Unavailable) as error:
        problem = error.message
    for file in directory.glob("*.json"):
        try:
            json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            problem = problem or f"{file.name} is not valid JSON"
        except OSError as error:
            problem = problem or f"{file.name} can't be read: {error.strerror}"
    if not any(directory.glob("*.safetensors")):
        problem = problem or "it has no *.safetensors weights"
    if not any(file for pattern in _TOKENIZERS for file in directory.glob(pattern)):
        problem = problem or "it has no tokenizer"
    if problem:
        advice = "copy it again, or remove it and pull again"
        raise PreconditionFailed(f"{directory} has no complete model: {problem}; {advice}")


def mark_complete(directory: Path) -> None:
    """Write the mark if it is missing or made of other sizes. Does nothing without weights or the right to write."""
    if not is_complete(directory) and os.access(directory, os.W_OK):
        with suppress(NotFound):
            fingerprint.ship(directory)


def is_complete(directory: Path) -> bool:
    """Whether the mark is there and the files have the sizes that it was made of."""
    with suppress(NotFound, OSError):
        return fingerprint.shipped(directory) is not None
    return False


def wait_until_complete(wanted: list[WantedModel], destination: Path, timeout_seconds: float) -> list[Path]:
    """Wait until another process has pulled all models into `destination`; returns their directories. Raises
    DeadlineExceeded with the missing names, PreconditionFailed as `is_there`.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        missing = [
            str(model)
            for model in wanted
            if not (is_complete(destination / model.directory) and is_there(model, destination / model.directory))
        ]
        if not missing:
            return [destination / model.directory for model in wanted]
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(
                f"not complete in {destination} after {timeout_seconds:g} s: {', '.join(missing)}; "
                "look at the process that pulls them (in Kubernetes, the Job model-download)"
            )
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def sync(directory: Path) -> None:
    """Write the files to disk before a rename: after a power failure, the name must not point to empty files."""
    for file in directory.iterdir():
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_directory(directory)
