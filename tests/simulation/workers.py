"""A pool of workers that train a toy: the protocol of `cluster.interface`, without processes."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import replace

from shared.process.waits import wait_at_most
from tests.simulation.loop import Node, kill, start_on
from tests.trainer_service.scripted import ScriptedTrainer
from trainer_service.cluster.interface import WorkerLost, WorkerReport
from trainer_service.training.events import TrainingEvent, TrainingTask
from trainer_service.training.spec import Example

_STEP_SECONDS = 1.0
_LOAD_SECONDS = 3.0


class SimulatedWorker:
    """A `WorkerHandle`. It has its own node, so it trains while its trainer stands still; it dies with its trainer."""

    def __init__(self, id: str, base_model: str) -> None:
        self.id, self.base_model = id, base_model
        self._trainer = ScriptedTrainer(step_seconds=0, checkpoint_steps=3)
        self._events: list[tuple[int, TrainingEvent]] = []
        self._numbers = itertools.count(1)
        self._attempts: dict[str, int] = {}
        self._news = asyncio.Event()
        self._ready, self._lost, self.hung = False, "", False
        self.node = Node(id)
        self._task = start_on(self.node, self._train())

    async def add(self, task: TrainingTask) -> None:
        self._check()
        assert task.data is not None
        if self._attempts.get(task.job_id, 0) >= task.attempt:
            return
        if task.job_id in self._attempts:
            self._trainer._leave(task.job_id)
        self._attempts[task.job_id] = task.attempt
        self._trainer.add(replace(task, train=[Example(task.data.dataset.path, "yes")]))

    async def stop(self, job_id: str, attempt: int) -> None:
        self._check()
        if self._attempts.get(job_id) == attempt:
            self._trainer.stop(job_id)

    async def poll(self, since: int, timeout_seconds: float) -> WorkerReport:
        self._check()
        self._events = [event for event in self._events if event[0] > since]
        if not self._events:
            self._news.clear()
            await wait_at_most(timeout_seconds, self._news)
        self._check()
        if self.hung:
            await asyncio.sleep(10_000)
        last = self._events[-1][0] if self._events else since
        return WorkerReport(last, tuple(event for _, event in self._events), self._ready, dict(self._attempts))

    async def close(self) -> None:
        self.kill("it was closed")

    def kill(self, reason: str) -> None:
        """Every later call raises WorkerLost."""
        self._lost = self._lost or reason
        self._task.cancel()
        self._news.set()

    def _check(self) -> None:
        if self._lost:
            raise WorkerLost(self._lost)

    async def _train(self) -> None:
        await asyncio.sleep(_LOAD_SECONDS)
        self._ready = True
        self._news.set()
        while True:
            await asyncio.sleep(_STEP_SECONDS)
            if self._trainer.is_idle:
                continue
            for event in self._trainer.step():
                self._events.append((next(self._numbers), event))
                self._news.set()
            self._attempts = {id: attempt for id, attempt in self._attempts.items() if id in self._trainer._tasks}


class SimulatedPool:
    """A `WorkerPool` whose workers are lost or hang at times."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self._name, self._rng = name, rng
        self._numbers = itertools.count(1)
        self.workers: list[SimulatedWorker] = []

    async def start(self) -> None:
        """There is no cluster to join."""

    async def launch(self, base_model: str) -> SimulatedWorker:
        await asyncio.sleep(self._rng.uniform(0.1, 2))
        worker = SimulatedWorker(f"{self._name}-{next(self._numbers)}", base_model)
        self.workers.append(worker)
        return worker

    async def close(self) -> None:
        for worker in self.workers:
            await worker.close()

    def die(self) -> None:
        """All workers end with their trainer."""
        for worker in self.workers:
            kill(worker.node)

    async def harm_one(self) -> None:
        """One worker is lost, or stops answering."""
        if living := [worker for worker in self.workers if not worker._lost]:
            worker = self._rng.choice(living)
            if self._rng.random() < 0.7:
                worker.kill("its node is gone")
            else:
                worker.hung = True
