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
import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from shared.errors import InvalidInput, PreconditionFailed, Unavailable
from shared.store.base import ObjectInfo, check_key, check_size
from shared.store.disk import Disk, FileStatus
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

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self._root, self._disk = Path(os.path.abspath(root)), disk or Disk()
        self._marker = self._root / _MARKER
        self._names = itertools.count()
        with _as_unavailable():
            if self._exists(self._root) and not self._is_folder(self._root):
                raise InvalidInput.of("store", f"{str(root)!r} is a file; a directory is expected")
            if not self._exists(self._marker):
                for folder in (*reversed(self._root.parents), self._root, self._root / _TEMPORARY):
                    if not self._exists(folder):
                        self._disk.make_folder(folder)
                with contextlib.suppress(FileExistsError), self._disk.create(self._marker):
                    pass
                self._disk.sync_folder(self._root)
        self.sweep()

    def get(self, key: str, max_bytes: int) -> bytes | None:
        with _as_unavailable():
            try:
                with self._disk.open(self._path(key)) as file:
                    status = file.status()
                    if not status.is_file:
                        raise OSError(errno.EINVAL, "not a regular file")
                    check_size(key, status.size_bytes, max_bytes)
                    return file.read(max_bytes)
            except (FileNotFoundError, NotADirectoryError):
                self._check_available()
                return None

    def create(self, key: str, data: bytes) -> bool:
        with self._temporary(data) as temporary, _as_unavailable():
            path = self._path(key)
            made = self._make_folder(path.parent)
            try:
                self._disk.link(temporary, path)
            except FileExistsError:
                return False
            for directory in (path.parent, *made):
                self._disk.sync_folder(directory)
            return True

    def put(self, key: str, data: bytes) -> None:
        with self._temporary(data) as temporary, _as_unavailable():
            path = self._path(key)
            made = self._make_folder(path.parent)
            self._disk.replace(temporary, path)
            for directory in (path.parent, *made):
                self._disk.sync_folder(directory)

    def head(self, key: str) -> ObjectInfo | None:
        with _as_unavailable():
            try:
                return _info(key, self._disk.status(self._path(key)))
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
                self._disk.unlink(self._path(key))
            except FileNotFoundError:
                self._check_available()

    def sweep(self) -> int:
        """Remove temporary files of killed writers and empty folders of journals; not on a read-only mount."""
        oldest, num_removed = time.time() - _STALE_TEMPORARY_SECONDS, 0
        for path in self._old(self._root / _TEMPORARY, oldest):
            with contextlib.suppress(OSError):  # removed by its writer or another process
                self._disk.unlink(path)
                num_removed += 1
        for path in self._old(self._root / USAGE, oldest):
            with contextlib.suppress(OSError):  # not empty, or not a folder
                self._disk.remove_folder(path)  # a journal that publishes just now does it again
                num_removed += 1
        return num_removed

    def _old(self, folder: Path, oldest: float) -> Iterator[Path]:
        """Paths in the folder that were changed before `oldest`; none if it can't be read."""
        with contextlib.suppress(OSError):
            for entry in self._disk.entries(folder):
                with contextlib.suppress(FileNotFoundError):
                    if self._disk.status(folder / entry.name).modified_at < oldest:
                        yield folder / entry.name

    def close(self) -> None:
        """Does nothing: no file stays open between calls."""

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _check_available(self) -> None:
        """Raises OSError if the marker file is missing."""
        self._disk.status(self._marker)

    def _exists(self, path: Path) -> bool:
        try:
            self._disk.status(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _is_folder(self, path: Path) -> bool:
        try:
            self._disk.entries(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _walk(self, folder: str) -> Iterator[ObjectInfo]:
        try:
            entries = self._disk.entries(self._root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            key = f"{folder}/{entry.name}"
            if entry.is_folder:
                yield from self._walk(key)
                continue
            with contextlib.suppress(FileNotFoundError):  # deleted since the folder was read
                yield _info(key, self._disk.status(self._root / key))

    @contextlib.contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        """Write a synced temporary file for the `with` block."""
        path = self._root / _TEMPORARY / f"{os.getpid()}-{next(self._names)}-{secrets.token_hex(4)}"
        try:
            with _as_unavailable():
                self._check_available()
                with self._disk.create(path) as file:
                    file.write(data)
                    file.sync()
            yield path
        finally:
            with contextlib.suppress(OSError):
                self._disk.unlink(path)

    def _make_folder(self, folder: Path) -> Sequence[Path]:
        """Create a folder and its parents, but never the root: if the root is missing, the store is unavailable.

        Returns the folders to sync after the new object's folder. On a journaling file system they then cost almost
        nothing.
        """
        if self._exists(folder):
            return []
        self._check_available()
        missing = [part for part in (folder, *folder.parents) if self._root in part.parents and not self._exists(part)]
        for part in reversed(missing):
            self._disk.make_folder(part)
        return [part.parent for part in missing]


def _info(key: str, status: FileStatus) -> ObjectInfo:
    return ObjectInfo(key, status.size_bytes, datetime.fromtimestamp(status.modified_at, UTC))


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
