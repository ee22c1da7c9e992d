"""Counts who used what: a journal on this machine that survives kill -9, and its way to the prompt store.

Each ended request is one line of a file, written before the metrics count it. Nothing is synced: a killed process
loses no line; a machine that loses power may lose those that the store does not have yet. Every few seconds the file is
closed and its sums are published as a segment (`shared.store.usage`). Each process has its own journal; it also
publishes what the journals of ended processes have left.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import lock_descriptor
from pydantic import ValidationError

from inference_service.engine.core.stats import FinishedRequest
from inference_service.prompts.version import prompt_of_prefix, version_of_prefix
from shared.config import ConfigError
from shared.errors import SoftPromptError
from shared.process.call_pool import CallPool
from shared.store.base import ObjectBackend
from shared.store.usage import (
    HOUR_SECONDS,
    SegmentId,
    UsageRecord,
    UsageSegments,
    UsedUp,
    decode_segment,
    encode_segment,
    read_used_up,
)

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 8 << 20
"""A file is closed at this size, also while the store is unavailable."""
MAX_JOURNAL_BYTES = 256 << 20
"""Of the files that wait for the store. Further records are lost and counted."""
_CLOSE_SECONDS = 2.0
_LIFE = re.compile("[0-9a-f]{32}")


class UsageJournal:
    """The files of one process, `<folder>/<life>/<number>`. `append` runs in the engine's thread."""

    def __init__(self, folder: Path, base_model: str) -> None:
        """Raises ConfigError if the folder can't be used."""
        self._base_model = _shown(base_model)
        self._life = folder / uuid.uuid4().hex
        self._lock = threading.Lock()
        self._number, self._size, self._closed_bytes = 1, 0, 0
        self.num_lost = 0
        """Records that could not be written."""
        try:
            unlocked = folder / f"new-{self._life.name}"  # no other process takes it before it is locked
            unlocked.mkdir(parents=True, mode=0o700)
            self._held = _held(unlocked)
            unlocked.rename(self._life)
            self._file = self._open()
        except OSError as error:
            raise ConfigError(f"SOFTPROMPT_INFERENCE_USAGE_DIR: {folder}: {error.strerror}") from error

    def append(self, request: FinishedRequest) -> None:
        """Record a request. Never raises."""
        try:
            line = encode_segment([self._record(request)])
            with self._lock:
                if self._closed_bytes + self._size > MAX_JOURNAL_BYTES:
                    raise OSError("the journal is full: the prompt store does not take its segments")
                if os.write(self._file, line) != len(line):
                    os.ftruncate(self._file, self._size)  # else the next record would begin within this one
                    raise OSError("the disk is full")
                self._size += len(line)
                if self._size >= MAX_FILE_BYTES:
                    self._close_file()
        except (OSError, ValidationError) as error:
            if not self.num_lost:
                log.error("usage can't be recorded: %s", error)
            self.num_lost += 1

    def publish(self, segments: UsageSegments) -> None:
        """Publish all records so far, and what ended processes have left. Raises the store's errors."""
        with self._lock:
            if self._size:
                self._close_file()
            number = self._number
        self._publish(segments, self._life, below=number)
        for life in sorted(self._life.parent.iterdir()):
            if life != self._life and _LIFE.fullmatch(life.name) and (held := _held(life)) is not None:
                try:
                    self._publish(segments, life)
                    life.rmdir()
                except OSError as error:
                    log.warning("an earlier journal of usage can't be read: %s", error)
                finally:
                    os.close(held)

    def close(self) -> None:
        """Close the file, and remove the journal if all of it was published."""
        with self._lock:
            os.close(self._file)
        if not self._size:
            (self._life / str(self._number)).unlink(missing_ok=True)
        if self._held is not None:
            os.close(self._held)
        for folder in (self._life, self._life.parent):
            try:
                folder.rmdir()
            except OSError:
                return

    def _publish(self, segments: UsageSegments, life: Path, below: int | None = None) -> None:
        names = sorted((path for path in life.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
        for path in names:
            if below is None or int(path.name) < below:
                data = path.read_bytes()
                whole = decode_segment(data)
                if whole.unread:  # a loss of power has damaged it
                    log.warning("damaged records of usage are skipped: %s", whole.problem)
                segments.publish(SegmentId(life.name, int(path.name)), encode_segment(whole.records))
                path.unlink()
                if below is not None:
                    with self._lock:
                        self._closed_bytes -= len(data)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        return os.open(self._life / str(self._number), flags, 0o600)

    def _close_file(self) -> None:
        before, self._number = self._number, self._number + 1
        try:
            opened = self._open()
        except OSError:
            self._number = before
            raise
        os.close(self._file)
        self._file, self._closed_bytes, self._size = opened, self._closed_bytes + self._size, 0

    def _record(self, request: FinishedRequest) -> UsageRecord:
        prefix, usage = request.prefix_id, request.usage
        return UsageRecord(
            hour=int(time.time()) // HOUR_SECONDS * HOUR_SECONDS,
            tenant=request.tenant,
            caller=_shown(request.caller),
            prompt="" if prefix is None else prompt_of_prefix(prefix),
            version=0 if prefix is None else version_of_prefix(prefix),
            base_model=self._base_model,
            requests=1,
            input_tokens=usage.read_tokens,
            virtual_tokens=usage.virtual_tokens,
            cached_tokens=usage.cached_tokens,
            generated_tokens=usage.generated_tokens,
        )


class ReplicaUsage:
    """Publishes a journal and reads which tenants have used up a budget, every `seconds`."""

    def __init__(self, journal: UsageJournal, backend: ObjectBackend, pool: CallPool, seconds: float) -> None:
        self._journal, self._backend, self._pool, self._seconds = journal, backend, pool, seconds
        self._segments = UsageSegments(backend)
        self._used_up: dict[str, UsedUp] = {}
        self._problem = ""

    @property
    def record(self) -> Callable[[FinishedRequest], None]:
        """Records a request."""
        return self._journal.append

    def check(self, tenant: str, now: float | None = None) -> None:
        """Raises Overloaded if a hard budget of the tenant is used up."""
        found, now = self._used_up.get(tenant), time.time() if now is None else now
        if found is not None and found.resets_at > now:
            raise found.error(now)

    async def round(self) -> None:
        """Publish and read once. A failure is logged once; serving goes on."""
        try:
            await self._pool.call(self._exchange)
            self._problem = ""
        except (SoftPromptError, OSError) as error:
            if str(error) != self._problem:
                log.warning("usage could not be published; retrying: %s", error)
            self._problem = str(error)

    async def run(self) -> None:
        """Do rounds until cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            await self.round()

    async def close(self) -> None:
        """Publish the last records, when the engine has stopped."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.round()
        except TimeoutError:
            log.warning("the last usage stays on this machine until a replica starts here")
        self._journal.close()

    def _exchange(self) -> None:
        try:
            self._journal.publish(self._segments)
        finally:  # neither failure prevents the other
            self._used_up = read_used_up(self._backend)


def _held(life: Path) -> int | None:
    """An exclusive lock on a journal's folder, freed with the process; None if another one holds it."""
    try:
        handle = os.open(life, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):
        if lock_descriptor(handle, blocking=False):
            return handle
    os.close(handle)
    return None


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:200])
