"""Files of jobs, kept outside the workers: the latest checkpoint, and the trained result until it is published. A job
that ended without a version keeps its checkpoint, so that another job can start from its best prompt.

They are small (kilobytes to a few megabytes), written every few seconds, and read only after a failure. With SQLite
they are files beside the database; with PostgreSQL they are rows, because a replica on another machine may resume a
job.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from sqlalchemy import bindparam, delete, func, select

from shared.directories import sync_directory
from shared.errors import Unavailable
from trainer_service.database.database import Database
from trainer_service.database.schema import job_files
from trainer_service.jobs.model import Job, first_job_id

log = logging.getLogger(__name__)

_JOB_ID = re.compile(r"[0-9a-z]{1,64}")
_ATTEMPT_BYTES = 8
_DIGEST_BYTES = 32
_NEW_SECONDS = 3600.0
"""Files of younger jobs are never removed as orphans: a trainer that creates a job stores the prompt to start from
before the job's row.
"""


class FileKind(StrEnum):
    """Kinds of files; a job has at most one of each."""

    CHECKPOINT = "checkpoint"
    """The job's training state."""
    OUTCOME = "outcome"
    """The encoded `publish.publication.Publication` of a trained job."""
    SOURCE = "source"
    """The last checkpoint of another job, whose best prompt this one starts from."""


_DATA = select(job_files.c.data).where(
    job_files.c.job_id == bindparam("of_job"), job_files.c.kind == bindparam("of_kind")
)
_REMOVE = delete(job_files).where(job_files.c.job_id == bindparam("of_job"), job_files.c.kind != bindparam("kept"))


class JobFiles(Protocol):
    """Stores the files of jobs. Methods block, are thread-safe, and raise Unavailable."""

    def save(self, job_id: str, kind: FileKind, attempt: int, data: bytes) -> None:
        """Replaces the file durably and atomically, but keeps a file from a later attempt."""

    def load(self, job_id: str, kind: FileKind) -> bytes | None:
        """The file's content; None if it doesn't exist or is damaged, in which case the job starts again."""

    def remove(self, job_id: str, *, keep: FileKind | None = None) -> None:
        """Removes all files of a job except `keep`."""

    def remove_ended(self, living: Callable[[], Collection[str]]) -> None:
        """Removes files that a crash has left behind: those of jobs that `living()` doesn't return. `living` is called
        after the files are listed, so files of new jobs are safe.
        """

    def size_bytes(self) -> int:
        """Total size of all files."""


def files_for(database: Database, directory: Path) -> JobFiles:
    """In `directory` if the database is SQLite, else in PostgreSQL, where every replica can read them."""
    return DirectoryFiles(directory) if database.is_sqlite else DatabaseFiles(database)


def keep_what_is_worth(files: JobFiles, job: Job) -> None:
    """Removes the files of an ended job, except the checkpoint with its best prompt if it ended without a version."""
    files.remove(job.id, keep=FileKind.CHECKPOINT if job.keeps_best_prompt else None)


class DirectoryFiles:
    """Files `<root>/<job id>/<kind>`: the attempt (8 bytes), the SHA-256 of the data (32 bytes), the data. Only one
    process may write.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        with _disk():
            root.mkdir(parents=True, exist_ok=True, mode=0o750)

    def save(self, job_id: str, kind: FileKind, attempt: int, data: bytes) -> None:
        path = self._path(job_id, kind)
        with _disk():
            if self._attempt(path) > attempt:
                return
            path.parent.mkdir(exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(attempt.to_bytes(_ATTEMPT_BYTES, "big") + hashlib.sha256(data).digest())
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            sync_directory(path.parent)

    def load(self, job_id: str, kind: FileKind) -> bytes | None:
        with _disk():
            try:
                stored = self._path(job_id, kind).read_bytes()
            except FileNotFoundError:
                return None
        digest, data = stored[_ATTEMPT_BYTES : _ATTEMPT_BYTES + _DIGEST_BYTES], stored[_ATTEMPT_BYTES + _DIGEST_BYTES :]
        if hashlib.sha256(data).digest() != digest:
            log.error("a job's %s is damaged; ignoring it", kind, extra={"fields": {"job": job_id}})
            return None
        return data

    def remove(self, job_id: str, *, keep: FileKind | None = None) -> None:
        if keep is None:
            shutil.rmtree(self._folder(job_id), ignore_errors=True)
            return
        for kind in FileKind:
            if kind is not keep:
                with _disk():
                    self._path(job_id, kind).unlink(missing_ok=True)

    def remove_ended(self, living: Callable[[], Collection[str]]) -> None:
        with _disk():
            folders = [folder for folder in self._root.iterdir() if folder.is_dir()]
        found = living()
        for folder in folders:
            if folder.name not in found:
                shutil.rmtree(folder, ignore_errors=True)

    def size_bytes(self) -> int:
        with _disk():
            return sum(_size(path) for path in self._root.glob("*/*"))

    def all(self) -> Iterator[tuple[str, FileKind, int, bytes]]:
        """Job, kind, attempt and content of every sound file."""
        with _disk():
            folders = sorted(folder.name for folder in self._root.iterdir() if _JOB_ID.fullmatch(folder.name))
        for job_id in folders:
            for kind in FileKind:
                if (data := self.load(job_id, kind)) is not None:
                    yield job_id, kind, self._attempt(self._path(job_id, kind)), data

    def _folder(self, job_id: str) -> Path:
        if not _JOB_ID.fullmatch(job_id):
            raise ValueError(f"not a job id: {job_id[:80]!r}")
        return self._root / job_id

    def _path(self, job_id: str, kind: FileKind) -> Path:
        return self._folder(job_id) / kind.value

    def _attempt(self, path: Path) -> int:
        try:
            with path.open("rb") as file:
                return int.from_bytes(file.read(_ATTEMPT_BYTES), "big")
        except FileNotFoundError:
            return -1


class DatabaseFiles:
    """Files as rows of the job database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, job_id: str, kind: FileKind, attempt: int, data: bytes) -> None:
        key, values = {"job_id": job_id, "kind": kind.value}, {"attempt": attempt, "data": data}
        with self._database.write() as connection:
            self._database.put(connection, job_files, key, values, newest="attempt")

    def load(self, job_id: str, kind: FileKind) -> bytes | None:
        with self._database.read() as connection:
            data = connection.scalar(_DATA, {"of_job": job_id, "of_kind": kind.value})
        return bytes(data) if data is not None else None

    def remove(self, job_id: str, *, keep: FileKind | None = None) -> None:
        with self._database.write() as connection:
            connection.execute(_REMOVE, {"of_job": job_id, "kept": keep.value if keep else ""})

    def remove_ended(self, living: Callable[[], Collection[str]]) -> None:
        query = select(job_files.c.job_id).where(job_files.c.job_id < first_job_id(time.time() - _NEW_SECONDS))
        stored = set(self._database.scalars(query))
        for job_id in stored - set(living()):
            self.remove(job_id)

    def size_bytes(self) -> int:
        return int(self._database.scalar(select(func.sum(func.octet_length(job_files.c.data)))) or 0)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("checkpoints can't be written or read: %s", error.strerror)
        raise Unavailable("the trainer can't write or read checkpoints now; try again later") from error
