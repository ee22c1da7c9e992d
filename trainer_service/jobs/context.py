"""What the parts of the job manager share: the store and its threads, this replica's identity, and the listeners for
changes.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shared.model.models_file import ModelsFile
from shared.process.call_pool import CallPool
from trainer_service.cluster.interface import WorkerMemory
from trainer_service.cluster.worker_state import LaunchFailure, WorkerState
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.model import EventPayload, Job, Note
from trainer_service.jobs.preparation import Preparation
from trainer_service.jobs.record import Record
from trainer_service.jobs.store.files import JobFiles, keep_what_is_worth
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.pools import TrainerPools
from trainer_service.training.events import TrainingEvent


class MemoryUse:
    """The largest use that this replica has seen since its start. Used in the event loop."""

    def __init__(self) -> None:
        self._most: dict[str, int] = {}

    def observe(self, base_model: str, num_jobs: int, used_bytes: int) -> None:
        """Records a worker's memory while it runs `num_jobs` jobs; ignores a worker that only holds the model."""
        if num_jobs:
            self._most[base_model] = max(used_bytes, self._most.get(base_model, 0))

    def most_bytes(self, base_model: str) -> int | None:
        """The largest use with at least one job, including the model; None before the first."""
        return self._most.get(base_model)


class JobsObserver:
    """Receives the events that metrics count; this one ignores them. Its methods run on the event loop and must neither
    block nor raise.
    """

    def job_changed(self, job: Job) -> None:
        """The job has a new state."""

    def training_event(self, event: TrainingEvent) -> None:
        """A worker reported an event of a job."""

    def worker_launched(self, base_model: str) -> None:
        """A worker's launch has begun."""

    def worker_changed(self, base_model: str, before: WorkerState | None, after: WorkerState | None) -> None:
        """A worker changed its state. `before` is None for a new worker, `after` is None for one that ended."""

    def worker_measured(self, base_model: str, worker: str, memory: WorkerMemory | None) -> None:
        """A worker reported its memory; None: it has ended."""

    def worker_ended(self, base_model: str, reason: str) -> None:
        """`reason` is a `WorkerEnd`."""

    def launch_failed(self, base_model: str, reason: LaunchFailure) -> None:
        """A worker ended before it was ready, without a request to end."""

    def publish_failed(self, job: Job) -> None:
        """An attempt to publish failed; it will be repeated."""


class ChangeNotifier:
    """Wakes the watchers of a job when it changes. Use it on the event loop's thread only."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def notify(self, job_id: str) -> None:
        """Sets the events of all subscribers of the job."""
        for waiting in self._waiting.get(job_id, ()):
            waiting.set()

    def subscribe(self, job_id: str) -> asyncio.Event:
        """Returns an event that is set at each change of the job; the subscriber clears it."""
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        return event

    def unsubscribe(self, job_id: str, event: asyncio.Event) -> None:
        """Ends a subscription."""
        self._waiting[job_id].discard(event)
        if not self._waiting[job_id]:
            del self._waiting[job_id]


def new_owner() -> str:
    """A name for this process that is unique among all trainer replicas and their restarts."""
    return f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class JobsContext:
    """Shared by the dispatcher, the publisher and the manager."""

    store: JobStore
    files: JobFiles
    preparation: Preparation
    config: JobsConfig
    observer: JobsObserver
    owner: str = field(default_factory=new_owner)
    """This replica as the owner of leases."""
    changes: ChangeNotifier = field(default_factory=ChangeNotifier)
    wake_dispatcher: asyncio.Event = field(default_factory=asyncio.Event)
    pools: TrainerPools = field(default_factory=TrainerPools)
    memory_use: MemoryUse = field(default_factory=MemoryUse)
    models: ModelsFile = field(default_factory=ModelsFile)

    def launch_seconds(self, base_model: str) -> float:
        """Longest time from a worker's launch until its base model is loaded."""
        return self.models.workers(base_model).launch_seconds or self.config.launch_seconds

    @property
    def database(self) -> CallPool:
        """The threads in which the job store is called."""
        return self.pools.job_database

    async def change(
        self,
        job_id: str,
        move: Callable[[Record], Record],
        *,
        attempt: int | None = None,
        payloads: Sequence[EventPayload] = (),
        is_progress: bool = False,
    ) -> Record:
        """Calls `JobStore.change`, retrying while the database is unavailable, and notifies all listeners. Progress
        alone doesn't wake the dispatcher, for which it changes nothing.
        """
        after = await self.database.retry(self.store.change, job_id, move, attempt=attempt, payloads=payloads)
        self.notify(after.job, is_progress=is_progress)
        return after

    async def note(self, job_id: str, *texts: str, attempt: int | None = None) -> None:
        """Adds notes to the job's events; `attempt` as in `change`."""
        payloads = [Note(text=text) for text in texts]
        await self.change(job_id, lambda record: record, attempt=attempt, payloads=payloads)

    async def clean(self, job: Job) -> None:
        """Removes the files of an ended job that aren't worth keeping, retrying while they can't be reached."""
        await self.pools.job_files.retry(keep_what_is_worth, self.files, job)

    def notify(self, job: Job, *, is_progress: bool = False) -> None:
        """Wakes the job's watchers and the dispatcher, and reports the change to the observer."""
        self.changes.notify(job.id)
        self.observer.job_changed(job)
        if not is_progress:
            self.wake_dispatcher.set()

    def close(self) -> None:
        """Closes the thread pools."""
        self.pools.close()
