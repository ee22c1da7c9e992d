"""What a job needs to go on after a crash, kept outside the workers: its latest checkpoint, and its outcome until that
is published. A job that ended without a version keeps its checkpoint, for another job to go on from its best prompt.

Small (kilobytes to a few megabytes), written every few seconds, read only after something died. With SQLite they are
files beside the database; with PostgreSQL rows of it, since the replica that goes on may be on another machine.
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

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from shared.errors import Unavailable
from trainer_service.database.database import Database
from trainer_service.database.schema import job_files
from trainer_service.jobs.model import Job, first_job_id

log = logging.getLogger(__name__)

_JOB_ID = re.compile(r"[0-9a-z]{1,64}")
_ATTEMPT_BYTES = 8
_DIGEST_BYTES = 32
_NEW_SECONDS = 3600.0
"""Another trainer may be creating a job of this age: it keeps the prompt that the job starts from before it writes the
job's row.
"""


class FileKind(StrEnum):
    CHECKPOINT = "checkpoint"
    """The cohort's state of the job."""
    OUTCOME = "outcome"
    """Trained: result and blob, to be published."""
    SOURCE = "source"
    """The last checkpoint of another job, whose best prompt this one starts from."""


class JobFiles(Protocol):
    """Methods block, are thread-safe, and raise Unavailable."""

    def save(self, job_id: str, kind: FileKind, attempt: int, data: bytes) -> None:
        """Replace what is there, durably and all or nothing; something from a later attempt stays."""

    def load(self, job_id: str, kind: FileKind) -> bytes | None:
        """None also if the bytes are damaged: then the job begins anew."""

    def remove(self, job_id: str, *, keep: FileKind | None = None) -> None:
        """All but `keep`."""

    def remove_ended(self, living: Callable[[], Collection[str]]) -> None:
        """Remove the files of jobs that have none any more; a crash may have left them. Jobs are asked for after
        looking at the files: those of a new job are safe.
        """

    def size_bytes(self) -> int:
        """Of all of them."""


def keep_what_is_worth(files: JobFiles, job: Job) -> None:
    """Remove the files of an ended job, but for the checkpoint that has its best prompt if no version was made."""
    files.remove(job.id, keep=FileKind.CHECKPOINT if job.keeps_best_prompt else None)


class DirectoryFiles:
    """`<root>/<job id>/<kind>`: attempt (8 bytes), SHA-256 of the rest (32 bytes), the data. One process writes."""

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
            _sync_directory(path.parent)

    def load(self, job_id: str, kind: FileKind) -> bytes | None:
        with _disk():
            try:
                stored = self._path(job_id, kind).read_bytes()
            except FileNotFoundError:
                return None
        digest, data = stored[_ATTEMPT_BYTES : _ATTEMPT_BYTES + _DIGEST_BYTES], stored[_ATTEMPT_BYTES + _DIGEST_BYTES :]
        if hashlib.sha256(data).digest() != digest:
            log.error("a job's %s is damaged and is not used", kind, extra={"fields": {"job": job_id}})
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
    """Rows of the job database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, job_id: str, kind: FileKind, attempt: int, data: bytes) -> None:
        insert = sqlite_insert if self._database.is_sqlite else postgresql_insert
        statement = insert(job_files).values(job_id=job_id, kind=kind.value, attempt=attempt, data=data)
        keys = [job_files.c.job_id, job_files.c.kind]
        changes = {"attempt": statement.excluded.attempt, "data": statement.excluded.data}
        newer = job_files.c.attempt <= statement.excluded.attempt
        with self._database.write() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes, where=newer))

    def load(self, job_id: str, kind: FileKind) -> bytes | None:
        query = select(job_files.c.data).where(job_files.c.job_id == job_id, job_files.c.kind == kind.value)
        with self._database.read() as connection:
            data = connection.scalar(query)
            return bytes(data) if data is not None else None

    def remove(self, job_id: str, *, keep: FileKind | None = None) -> None:
        unwanted = [kind.value for kind in FileKind if kind is not keep]
        with self._database.write() as connection:
            connection.execute(delete(job_files).where(job_files.c.job_id == job_id, job_files.c.kind.in_(unwanted)))

    def remove_ended(self, living: Callable[[], Collection[str]]) -> None:
        with self._database.read() as connection:
            stored = set(
                connection.scalars(
                    select(job_files.c.job_id).where(job_files.c.job_id < first_job_id(time.time() - _NEW_SECONDS))
                )
            )
        for job_id in stored - set(living()):
            self.remove(job_id)

    def size_bytes(self) -> int:
        with self._database.read() as connection:
            return int(connection.scalar(select(func.coalesce(func.sum(func.octet_length(job_files.c.data)), 0))) or 0)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("checkpoints can't be written or read: %s", error.strerror)
        raise Unavailable("the trainer can't write or read checkpoints now; try again later") from error
