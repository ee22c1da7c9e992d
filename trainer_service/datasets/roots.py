"""Dataset URIs: restricts the files that a request may name to the configured dataset roots.

URIs are `file:///...` under one of the roots. Links and `..` that lead out of the root are rejected, even if a folder
is moved between the check and the opening: each folder is opened relative to its parent, following no link. All wrong
paths get the same error, so that a caller can't find out which other files exist.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

from shared.errors import InvalidInput

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class DatasetRoots:
    """The folders under which `file://` URIs are allowed. Without any, all URIs are rejected."""

    def __init__(self, roots: Sequence[Path | str]) -> None:
        self._roots = tuple(Path(os.path.realpath(root)) for root in roots)

    def open(self, uri: str, field: str) -> BinaryIO:
        """The file behind `uri`, open for reading. Raises InvalidInput naming `field`."""
        if not self._roots:
            raise InvalidInput.of(
                field, "this trainer allows no dataset URIs; upload the dataset, or ask its operator for a dataset root"
            )
        parts = _split(uri)
        is_local = parts is not None and parts.scheme == "file" and parts.netloc in ("", "localhost")
        if parts is None or not is_local or parts.query or parts.fragment:
            raise InvalidInput.of(field, f"{uri[:200]!r} must look like file:///folder/file.jsonl")
        path = unquote(parts.path)
        if "\0" in path or ".." in path.split("/"):
            raise InvalidInput.of(field, f"{uri[:200]!r} must not contain '..' or NUL")
        try:
            return self._open_inside(Path(os.path.realpath(path)))
        except OSError as error:
            raise InvalidInput.of(
                field, f"{uri[:200]!r} is not a readable file under one of your tenant's dataset roots"
            ) from error

    def _open_inside(self, path: Path) -> BinaryIO:
        root = next((root for root in self._roots if path.is_relative_to(root) and path != root), None)
        if root is None:
            raise FileNotFoundError
        *folders, name = path.relative_to(root).parts
        folder = os.open(root, _FOLDER)
        try:
            for part in folders:
                inner = os.open(part, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = inner
            descriptor = os.open(name, _FILE, dir_fd=folder)
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError
        return os.fdopen(descriptor, "rb")


def _split(uri: str) -> SplitResult | None:
    try:
        return urlsplit(uri)
    except ValueError:
        return None
