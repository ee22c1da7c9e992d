"""Workers as threads of this process, with the same `Worker` as on Ray."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from trainer_service.cluster.interface import WorkerLost, WorkerMemory, WorkerReport
from trainer_service.cluster.worker import Trainer, Worker
from trainer_service.training.events import TrainingTask


class LocalWorker:
    """A `WorkerHandle`. `kill` makes it as unreachable as a dead process."""

    def __init__(self, id: str, base_model: str, worker: Worker, close_seconds: float) -> None:
        self._id, self._base_model, self._worker, self._close_seconds = id, base_model, worker, close_seconds
        self._lost: str | None = None

    @property
    def id(self) -> str:
        return self._id

    @property
    def base_model(self) -> str:
        return self._base_model

    @property
    def is_closed(self) -> bool:
        return self._lost is not None

    async def add(self, task: TrainingTask) -> None:
        self._check()
        self._worker.add(task)

    async def stop(self, job_id: str, attempt: int) -> None:
        self._check()
        self._worker.stop(job_id, attempt)

    async def poll(self, since: int, timeout_seconds: float) -> WorkerReport:
        self._check()
        report = await asyncio.to_thread(self._worker.poll, since, timeout_seconds)
        self._check()
        return report

    async def close(self) -> None:
        self._lost = self._lost or "it was closed"
        await asyncio.to_thread(self._worker.close, self._close_seconds)

    def kill(self, reason: str = "it was killed") -> None:
        """Makes every later call raise WorkerLost with this reason."""
        self._lost = reason

    def _check(self) -> None:
        if self._lost is not None:
            raise WorkerLost(self._lost)


class LocalPool:
    """A `WorkerPool`. `load` makes the trainer of a base model, given its id, in the worker's thread.

    A thread can't be killed: closing a worker waits `close_seconds` for its current step, then abandons the thread.
    """

    def __init__(
        self,
        load: Callable[[str], tuple[Trainer, dict[str, str]]],
        close_seconds: float = 10.0,
        measure_memory: Callable[[], WorkerMemory] | None = None,
    ) -> None:
        self._load, self._close_seconds, self._measure_memory = load, close_seconds, measure_memory
        self._numbers = itertools.count(1)
        self.workers: list[LocalWorker] = []
        """All workers launched so far."""

    async def start(self) -> None:
        """Does nothing: there is no cluster to join."""

    async def launch(self, base_model: str) -> LocalWorker:
        loaded = Worker(lambda: self._load(base_model), self._measure_memory)
        worker = LocalWorker(f"local-{next(self._numbers)}", base_model, loaded, self._close_seconds)
        self.workers.append(worker)
        return worker

    async def close(self) -> None:
        await asyncio.gather(*(worker.close() for worker in self.workers))
