"""What the parts of the job manager share: the store, the threads to call it in, who this replica is, and whom to tell
of changes.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shared.process.call_pool import CallPool
from trainer_service.cluster.worker_state import LaunchFailure, WorkerState
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.model import EventPayload, Job
from trainer_service.jobs.preparation import Preparation
from trainer_service.jobs.record import Record
from trainer_service.jobs.store.files import JobFiles
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.pools import TrainerPools
from trainer_service.training.events import TrainingEvent


class JobsObserver(Protocol):
    """Told of what a metrics page wants to know. Called on the event loop; must not block nor raise."""

    def job_changed(self, job: Job) -> None:
        """The job has a new state."""

    def training_event(self, event: TrainingEvent) -> None: ...

    def worker_launched(self, base_model: str) -> None: ...

    def worker_changed(self, base_model: str, before: WorkerState | None, after: WorkerState | None) -> None:
        """A worker is in another state. None before: it is new. None after: it ended."""

    def worker_ended(self, base_model: str, reason: str) -> None:
        """`reason` is a `WorkerEnd`."""

    def launch_failed(self, base_model: str, reason: LaunchFailure) -> None:
        """A worker ended before it was ready, and nothing had asked it to end."""

    def publish_failed(self, job: Job) -> None:
        """An attempt to publish; it is tried again."""


class SilentObserver:
    """Nobody watches."""

    def job_changed(self, job: Job) -> None: ...

    def training_event(self, event: TrainingEvent) -> None: ...

    def worker_launched(self, base_model: str) -> None: ...

    def worker_changed(self, base_model: str, before: WorkerState | None, after: WorkerState | None) -> None: ...

    def worker_ended(self, base_model: str, reason: str) -> None: ...

    def launch_failed(self, base_model: str, reason: LaunchFailure) -> None: ...

    def publish_failed(self, job: Job) -> None: ...


class ChangeNotifier:
    """Wakes those who wait for news of a job. Only for the event loop's own thread."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def ring(self, job_id: str) -> None:
        for waiting in self._waiting.get(job_id, ()):
            waiting.set()

    def subscribe(self, job_id: str) -> asyncio.Event:
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        return event

    def unsubscribe(self, job_id: str, event: asyncio.Event) -> None:
        self._waiting[job_id].discard(event)
        if not self._waiting[job_id]:
            del self._waiting[job_id]


def new_owner() -> str:
    """This process among all trainer replicas and all their restarts."""
    return f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class JobsContext:
    store: JobStore
    files: JobFiles
    preparation: Preparation
    config: JobsConfig
    observer: JobsObserver
    owner: str = field(default_factory=new_owner)
    bell: ChangeNotifier = field(default_factory=ChangeNotifier)
    wake_dispatcher: asyncio.Event = field(default_factory=asyncio.Event)
    pools: TrainerPools = field(default_factory=TrainerPools)

    @property
    def database(self) -> CallPool:
        return self.pools.job_database

    async def change(
        self,
        job_id: str,
        move: Callable[[Record], Record],
        *,
        attempt: int | None = None,
        payloads: Sequence[EventPayload] = (),
    ) -> Record:
        """`JobStore.change`, insisting while the database is away, and telling everybody who waits."""
        after = await self.database.retry(self.store.change, job_id, move, attempt=attempt, payloads=payloads)
        self.tell(after.job)
        return after

    def tell(self, job: Job) -> None:
        self.bell.ring(job.id)
        self.observer.job_changed(job)
        self.wake_dispatcher.set()

    def close(self) -> None:
        self.pools.close()
