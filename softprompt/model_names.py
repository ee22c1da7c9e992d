"""Names for `models pull`: `[ID=]NAME[@REVISION]` or `[ID=]NAME[@sha256:FINGERPRINT]`, and their directories."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InvalidInput
from shared.process.user_cache import expanded
from shared.prompt.digest import DIGEST_PATTERN

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_DIRECTORY = re.compile(r"\w[\w.-]*", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
_FINGERPRINT = re.compile(DIGEST_PATTERN)


@dataclass(frozen=True)
class WantedModel:
    """A model to download, and the directory that it is stored in."""

    text: str
    """The name as it was given."""
    name: str
    """A catalogued model, a model directory, or a hub id (owner/model)."""
    directory: str
    """Name of the directory that it is stored in, inside the models directory."""
    revision: str = ""
    """Commit, branch or tag on the hub; empty: the newest commit at the time of the download."""
    fingerprint: str = ""
    """What the files must have; empty: anything."""

    @classmethod
    def parse(cls, text: str, *, local: bool = True) -> WantedModel:
        """Parse `NAME` or `ID=NAME`, with `@sha256:FINGERPRINT` or, for a hub id, `@REVISION`. Without ID, the
        directory is the last part of the name in lower case. `local`: a directory of this machine is a name. Raises
        InvalidInput.
        """
        if local and text and expanded(text).is_dir():
            return cls(text, text, Path(text).name)
        id, separator, rest = text.partition("=") if "=" in text else ("", "", text)
        name, at, revision = rest.partition("@")
        directory = id if separator else _directory_of(name)
        if not name or not _DIRECTORY.fullmatch(directory):
            forms = "a catalogued name, a model directory or [ID=]OWNER/MODEL[@REVISION]"
            raise InvalidInput.of("model", f"{text!r} must be {forms}")
        if _FINGERPRINT.fullmatch(revision):
            return cls(text, name, directory, fingerprint=revision)
        if at and not (_HUB_ID.fullmatch(name) and _REVISION.fullmatch(revision)):
            forms = "only a hub id has a revision, as in OWNER/MODEL@COMMIT; any name may have @sha256:FINGERPRINT"
            raise InvalidInput.of("model", f"{text!r}: {forms}")
        return cls(text, name, directory, revision)

    def __str__(self) -> str:
        return self.text

    @property
    def source_directory(self) -> str:
        """Name of the directory on a file server."""
        return _directory_of(self.name)

    @property
    def is_pinned(self) -> bool:
        """Whether the name asks for certain files."""
        return bool(self.revision or self.fingerprint)

    @property
    def is_hub_id(self) -> bool:
        """Whether the name is `OWNER/MODEL`."""
        return _HUB_ID.fullmatch(self.name) is not None


def _directory_of(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def parse_models(texts: list[str], *, local: bool = True) -> list[WantedModel]:
    """Parse texts that each name one model or several separated by commas. `local`: as in `WantedModel.parse`. Raises
    InvalidInput for an invalid name, for none, and for two models with one directory.
    """
    parts: list[str] = []
    for text in texts:
        parts += [text] if local and text and expanded(text).is_dir() else text.split(",")
    wanted = [WantedModel.parse(part.strip(), local=local) for part in parts if part.strip()]
    if not wanted:
        raise InvalidInput.of("model", "no model is named")
    for number, model in enumerate(wanted):
        if any(model.directory == other.directory and model != other for other in wanted[:number]):
            raise InvalidInput.of("model", f"two models would be stored as {model.directory!r}: write ID=NAME")
    return wanted
