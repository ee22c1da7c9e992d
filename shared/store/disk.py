"""The calls to the file system of a store in a directory, which the simulation replaces by ones that lose power.

Paths are absolute. All calls raise OSError like those of `os`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from shared.directories import sync_directory


class Entry(NamedTuple):
    """An entry of a folder; it may have been removed since."""

    name: str
    is_folder: bool


class FileStatus(NamedTuple):
    """Type, size and time of the last change, in seconds since the epoch."""

    is_file: bool
    size_bytes: int
    modified_at: float


class NewFile(Protocol):
    """A file that is being written."""

    def write(self, data: bytes) -> None:
        """Appends the bytes. Some or all of them are lost if the machine loses power before `sync`."""

    def sync(self) -> None:
        """Returns when what was written outlasts a loss of power."""


class OpenFile(Protocol):
    """A file that is being read."""

    def status(self) -> FileStatus:
        """Its status."""

    def read(self, most: int) -> bytes:
        """At most that many bytes from its beginning."""


class Disk:
    """The operating system's file system."""

    @contextmanager
    def create(self, path: Path) -> Iterator[NewFile]:
        """Makes a file that must not exist."""
        with path.open("xb") as file:
            yield _NewFile(file)

    @contextmanager
    def open(self, path: Path) -> Iterator[OpenFile]:
        """Opens a file, but follows no symbolic link and waits for no pipe."""
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            yield _OpenFile(file)

    def link(self, source: Path, target: Path) -> None:
        """Gives a file a further name, which must not exist."""
        os.link(source, target, follow_symlinks=False)

    def replace(self, source: Path, target: Path) -> None:
        """Renames a file to a name that may exist."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Removes a name."""
        os.unlink(path)

    def make_folder(self, path: Path) -> None:
        """Makes a folder that may exist; its parent does."""
        path.mkdir(exist_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Removes an empty folder."""
        os.rmdir(path)

    def status(self, path: Path) -> FileStatus:
        """The status of the file or folder at `path`. Symbolic links are not followed."""
        return _status_of(path.lstat())

    def entries(self, folder: Path) -> list[Entry]:
        """The entries of the folder."""
        with os.scandir(folder) as found:
            return [Entry(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]

    def sync_folder(self, folder: Path) -> None:
        """Returns when the names in the folder outlast a loss of power."""
        sync_directory(folder)


class _NewFile:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


class _OpenFile:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def status(self) -> FileStatus:
        return _status_of(os.fstat(self._file.fileno()))

    def read(self, most: int) -> bytes:
        return self._file.read(most)


def _status_of(found: os.stat_result) -> FileStatus:
    return FileStatus(stat.S_ISREG(found.st_mode), found.st_size, found.st_mtime)
