"""Datasets on a worker's node, found by their digest in the trainer's directory or received from the trainer in pieces.

Pickling a dataset of hundreds of megabytes would block the trainer's event loop, so a task contains only its digest. If
the trainer's directory is visible (one machine, a shared volume), the worker reads the file there. Otherwise the
trainer sends the bytes once to each node, and the node's workers share the copy. Texts stay in the file; the jobs of a
worker share the index of its lines.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from shared.errors import DamagedBlob
from shared.file_digest import sha256_of
from trainer_service.training.data.dataset import split_validation
from trainer_service.training.data.example_lines import ExampleLines
from trainer_service.training.events import DatasetFile, TaskData
from trainer_service.training.spec import Example

MAX_CACHE_BYTES = 1 << 30
"""The most bytes of received datasets on one node."""
_IN_USE_SECONDS = 600.0
"""A copy used more recently than this is not removed, because a worker may be about to read it."""

Examples = Sequence[Example]


def cache_directory() -> Path:
    """A directory that only this user can write, created if missing. Raises OSError if it is another user's."""
    directory = Path(tempfile.gettempdir()) / f"softprompt-datasets-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or not directory.is_dir() or directory.is_symlink():
        raise PermissionError(f"{directory} belongs to another user, or others can write it")
    return directory


@dataclass
class _Incoming:
    path: Path
    file: IO[bytes]
    hash: Any = field(default_factory=hashlib.sha256)
    num_bytes: int = 0


class NodeDatasets:
    """The datasets that a worker can read. Thread-safe. All methods except `forget` may block on the disk."""

    def __init__(self, directory: Path | None = None, max_cache_bytes: int = MAX_CACHE_BYTES) -> None:
        """`directory`: for received datasets, shared by the node's workers; by default created when first needed."""
        self._given, self._max_cache_bytes = directory, max_cache_bytes
        self._lock = threading.Lock()
        self._incoming: dict[str, _Incoming] = {}
        self._paths: dict[str, Path] = {}
        self._parsed: dict[str, ExampleLines] = {}
        self._used_by: dict[str, tuple[str, ...]] = {}
        """Digests, by job."""

    def has(self, file: DatasetFile) -> bool:
        """Whether this node can read the dataset and its digest is right."""
        for shared in (True, False):
            with suppress(OSError):
                path = Path(file.path) if shared else self._copy_of(file)
                if path.stat().st_size == file.size_bytes and sha256_of(path) == file.digest:
                    self._paths[file.digest] = path
                    with suppress(OSError):  # the trainer's own file on a volume that can't be written
                        os.utime(path)
                    return True
        return False

    def receive(self, file: DatasetFile, offset: int, piece: bytes) -> None:
        """Receive the next bytes of a dataset; `offset` 0 starts again. Raises DamagedBlob or OSError."""
        with self._lock:
            incoming = self._incoming.get(file.digest)
            if offset == 0:
                self._discard(file.digest)
                incoming = self._incoming[file.digest] = self._begin(file)
            if incoming is None or incoming.num_bytes != offset:
                raise DamagedBlob(f"bytes from {offset} of dataset {file.digest} came out of order")
            incoming.file.write(piece)
            incoming.hash.update(piece)
            incoming.num_bytes += len(piece)
            if incoming.num_bytes < file.size_bytes:
                return
            incoming.file.flush()
            if incoming.hash.hexdigest() != file.digest:
                self._discard(file.digest)
                raise DamagedBlob(f"dataset {file.digest} arrived with other bytes")
            copy = self._copy_of(file)
            os.replace(incoming.path, copy)
            self._discard(file.digest)
            self._paths[file.digest] = copy

    def load(self, job_id: str, data: TaskData) -> tuple[Examples, Examples]:
        """A job's training and held-out examples, until `forget`. Raises DamagedBlob, InvalidInput or OSError."""
        self._used_by[job_id] = tuple(file.digest for file in data.files)
        try:
            train = self._examples(data.dataset)
            if data.validation is not None:
                return train, self._examples(data.validation)
            return split_validation(train, data.validation_fraction, data.seed)
        except BaseException:
            self.forget(job_id)
            raise

    def forget(self, job_id: str) -> None:
        """Drop the examples of an ended job, unless other jobs use them."""
        with self._lock:
            digests = self._used_by.pop(job_id, ())
            needed = {digest for used in self._used_by.values() for digest in used}
            for digest in digests:
                if digest not in needed:
                    self._parsed.pop(digest, None)

    def _examples(self, file: DatasetFile) -> Examples:
        found = self._parsed.get(file.digest)
        if found is None:
            found = self._parsed[file.digest] = ExampleLines(self._paths.get(file.digest, Path(file.path)), file.digest)
        return found

    def _begin(self, file: DatasetFile) -> _Incoming:
        self._make_room(file.size_bytes)
        descriptor, name = tempfile.mkstemp(prefix=".incoming-", dir=self._directory)
        return _Incoming(Path(name), os.fdopen(descriptor, "wb"))

    def _discard(self, digest: str) -> None:
        if (incoming := self._incoming.pop(digest, None)) is not None:
            incoming.file.close()
            incoming.path.unlink(missing_ok=True)

    def _make_room(self, size_bytes: int) -> None:
        """Remove the least recently used copies and incomplete files of killed workers until the new file fits."""
        entries = sorted((entry.stat().st_mtime, entry.stat().st_size, entry) for entry in self._directory.iterdir())
        left = self._max_cache_bytes - size_bytes - sum(size for _, size, _ in entries)
        for used_at, size, entry in entries:
            if left >= 0 or used_at > time.time() - _IN_USE_SECONDS:
                return
            entry.unlink(missing_ok=True)
            left += size

    @property
    def _directory(self) -> Path:
        if self._given is None:
            self._given = cache_directory()
        return self._given

    def _copy_of(self, file: DatasetFile) -> Path:
        return self._directory / f"sha256-{file.digest}.jsonl"
