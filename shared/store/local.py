"""Stores objects as files in a directory of a normal file system (ext4, xfs, NFS), durable and atomic by hard links.

A new object is written to `tmp/` and synced, then linked to its final name (which fails if the name exists), and the
folder is synced. After a power failure, an acknowledged object is there and complete. A process that is killed during a
write leaves only a file in `tmp/`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from shared.directories import sync_directory
from shared.errors import InvalidInput, PreconditionFailed, Unavailable
from shared.store.base import ObjectInfo, check_key, check_size
from shared.store.layout import USAGE

_MARKER = ".softprompt-store"
_TEMPORARY = "tmp"
_STALE_TEMPORARY_SECONDS = 3600
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


class LocalBackend:
    """An `ObjectBackend` in the directory `root`, which is created if it is missing.

    A marker file distinguishes a missing object from a missing directory (an unmounted volume). The latter raises
    Unavailable, so that a replica keeps its versions and does not take the store for empty.
    """

    poll_seconds = 0.15

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))
        self._marker = str(self._root / _MARKER)
        self._names = itertools.count()
        if self._root.exists() and not self._root.is_dir():
            raise InvalidInput.of("store", f"{str(root)!r} is a file; a directory is expected")
        with _as_unavailable():
            if not os.path.exists(self._marker):
                self._root.mkdir(parents=True, exist_ok=True)
                (self._root / _TEMPORARY).mkdir(exist_ok=True)
                (self._root / _MARKER).touch()
                sync_directory(self._root)
        self.sweep()

    def get(self, key: str, max_bytes: int) -> bytes | None:
        with _as_unavailable():
            try:
                handle = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                self._check_available()
                return None
            with open(handle, "rb") as file:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                check_size(key, status.st_size, max_bytes)
                return file.read(max_bytes)

    def create(self, key: str, data: bytes) -> bool:
        with self._temporary(data) as temporary, _as_unavailable():
            path = self._path(key)
            made = self._make_folder(path.parent)
            try:
                os.link(temporary, path, follow_symlinks=False)
            except FileExistsError:
                return False
            for directory in (path.parent, *made):
                sync_directory(directory)
            return True

    def put(self, key: str, data: bytes) -> None:
        with self._temporary(data) as temporary, _as_unavailable():
            path = self._path(key)
            made = self._make_folder(path.parent)
            os.replace(temporary, path)
            for directory in (path.parent, *made):
                sync_directory(directory)

    def head(self, key: str) -> ObjectInfo | None:
        with _as_unavailable():
            try:
                return _info(key, self._path(key).lstat())
            except (FileNotFoundError, NotADirectoryError):
                self._check_available()
                return None

    def list(self, folder: str) -> list[ObjectInfo]:
        with _as_unavailable():
            self._check_available()
            return sorted(self._walk(folder.rstrip("/")), key=lambda info: info.key)

    def delete(self, key: str) -> None:
        with _as_unavailable():
            try:
                self._path(key).unlink()
            except FileNotFoundError:
                self._check_available()

    def sweep(self) -> int:
        """Remove temporary files of killed writers and empty folders of journals; not on a read-only mount."""
        oldest, num_removed = time.time() - _STALE_TEMPORARY_SECONDS, 0
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._root / _TEMPORARY):
                with contextlib.suppress(FileNotFoundError):  # removed by its writer or another process
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.path)
                        num_removed += 1
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._root / USAGE):
                with contextlib.suppress(OSError):  # not empty, or not a folder
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.rmdir(entry.path)  # a journal that publishes just now does it again
                        num_removed += 1
        return num_removed

    def close(self) -> None:
        """Does nothing: no file stays open between calls."""

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _check_available(self) -> None:
        """Raises OSError if the marker file is missing."""
        os.stat(self._marker)

    def _walk(self, folder: str) -> Iterator[ObjectInfo]:
        try:
            entries = list(os.scandir(self._root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            key = f"{folder}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(key)
                continue
            with contextlib.suppress(FileNotFoundError):  # deleted since the folder was read
                yield _info(key, entry.stat(follow_symlinks=False))

    @contextlib.contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        """Write a synced temporary file for the `with` block."""
        path = self._root / _TEMPORARY / f"{os.getpid()}-{next(self._names)}-{os.urandom(4).hex()}"
        try:
            with _as_unavailable():
                self._check_available()
                with path.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            yield path
        finally:
            with contextlib.suppress(OSError):
                path.unlink()

    def _make_folder(self, folder: Path) -> Sequence[Path]:
        """Create a folder and its parents, but never the root: if the root is missing, the store is unavailable.

        Returns the folders to sync after the new object's folder. On a journaling file system they then cost almost
        nothing.
        """
        if folder.is_dir():
            return []
        self._check_available()
        missing = [part for part in (folder, *folder.parents) if self._root in part.parents and not part.is_dir()]
        for part in reversed(missing):
            part.mkdir(exist_ok=True)
        return [part.parent for part in missing]


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    """Convert OSError to Unavailable, with the operating system's reason but without paths."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_HARD_LINKS:
            raise PreconditionFailed(
                "the prompt store's file system does not allow hard links or writing; use another one"
            ) from error
        raise Unavailable(
            f"the prompt store's directory can't be used: {error.strerror or 'input/output error'}"
        ) from error
