"""Workers that answer but make no progress, and failures that another job may have caused. Workers are threads, as in
`test_faults`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.trainer_service.builders import spec
from tests.trainer_service.job_service import Service
from tests.trainer_service.local_pool import LocalPool
from tests.trainer_service.scripted import ScriptedTrainer
from trainer_service.dispatch.manager import JobManager
from trainer_service.jobs.model import Note
from trainer_service.jobs.states import JobState
from trainer_service.training.events import Failed, TrainingEvent, TrainingTask

QUICK = {"step_seconds": 2.0, "poll_seconds": 0.1}
"""Far longer than a step here, also on a machine that does much else."""


class Hanging(ScriptedTrainer):
    """Blocks from the third step until the test ends."""

    def __init__(self, released: threading.Event) -> None:
        super().__init__()
        self.hangs, self._released, self._num_calls = threading.Event(), released, 0

    def step(self) -> Sequence[TrainingEvent]:
        self._num_calls += 1
        if self._num_calls > 3:
            self.hangs.set()
            self._released.wait()
        return super().step()


class Deaf(ScriptedTrainer):
    def stop(self, job_id: str) -> None:
        """Continues to step."""


class Spoilt(ScriptedTrainer):
    """A process that its second job damages: all its jobs fail through no fault of their own. Jobs named `bug` fail
    anywhere.
    """

    def __init__(self, finish: threading.Event | None = None) -> None:
        super().__init__(finish=finish)
        self._num_added = 0

    def add(self, task: TrainingTask) -> None:
        super().add(task)
        self._num_added += 1

    def _step_job(self, task: TrainingTask, *, alone: bool) -> list[TrainingEvent]:
        if self._num_added > 1 or task.train[0].input.startswith("bug"):
            self._leave(task.job_id)
            return [Failed(task.job_id, task.attempt, "INTERNAL", "failed unexpectedly", retryable=True)]
        return super()._step_job(task, alone=alone)


class Workers:
    """Starts the service with these trainers in order, and with ordinary ones after them."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.released = threading.Event()
        self.launched: list[ScriptedTrainer] = []

    async def start(self, *first: ScriptedTrainer, **config: Any) -> JobManager:
        waiting = list(first)

        def load(base_model: str) -> tuple[ScriptedTrainer, dict[str, str]]:
            self.launched.append(waiting.pop(0) if waiting else ScriptedTrainer(finish=self.service.finish))
            return self.launched[-1], {}

        return await self.service.start(LocalPool(load, close_seconds=0.1), **config)

    async def notes(self, job_id: str) -> list[str]:
        return [
            event.payload.text async for event in self.service.manager.watch(job_id) if isinstance(event.payload, Note)
        ]


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Workers]:
    made = Workers(Service(tmp_path))
    yield made
    made.released.set()
    await made.service.drain()


async def test_a_worker_whose_step_hangs_is_replaced_though_it_answers(workers: Workers) -> None:
    hanging = Hanging(workers.released)
    manager = await workers.start(hanging, **QUICK)
    job = await manager.create(spec(num_steps=30))
    done = await workers.service.state(job.id, JobState.SUCCEEDED)
    assert done.attempt == 2
    assert any("it hangs: one step has taken" in note for note in await workers.notes(job.id))
    assert workers.launched[1].log[0] == (job.id, 2, 4), "from its checkpoint"
    before = len(hanging.log)
    workers.released.set()
    while len(hanging.log) == before:
        await asyncio.sleep(0.01)
    assert (await manager.get(job.id)) == done, "reports after it revives are ignored"
    assert workers.service.versions("tone") == [1]


async def test_a_hanging_job_can_be_cancelled(workers: Workers) -> None:
    hanging = Hanging(workers.released)
    manager = await workers.start(hanging, **QUICK)
    job = await manager.create(spec(num_steps=30))
    await asyncio.to_thread(hanging.hangs.wait)
    assert (await manager.cancel(job.id)).state is JobState.CANCELLING
    cancelled = await workers.service.state(job.id, JobState.CANCELLED)
    assert cancelled.attempt == 1


async def test_a_hanging_job_ends_at_its_longest_runtime(workers: Workers) -> None:
    manager = await workers.start(Hanging(workers.released), **QUICK)
    job = await manager.create(spec(num_steps=30, max_runtime_seconds=0.5))
    failed = await workers.service.state(job.id, JobState.FAILED)
    assert failed.error is not None
    assert (failed.error.code, failed.attempt) == ("MAX_RUNTIME", 1)


@pytest.mark.parametrize("seconds", [200_000, -200_000])
async def test_a_clock_that_is_set_changes_no_time_on_a_worker(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    manager = await workers.start()
    jobs = [await manager.create(spec("forever", num_steps=steps, prompt=f"p-{steps}")) for steps in (100_000, 400)]
    begun = [await workers.service.until(job.id, lambda job: job.progress.step > 5) for job in jobs]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    await workers.service.until(jobs[0].id, lambda job: job.progress.step > begun[0].progress.step + 20)
    await manager.cancel(jobs[0].id)
    workers.service.finish.set()
    ended = [await workers.service.until(job.id, lambda job: job.state.is_final) for job in jobs]
    assert [job.state for job in ended] == [JobState.CANCELLED, JobState.SUCCEEDED]
    assert all(job.attempt == 1 and 0 < job.runtime_seconds < 3600 for job in ended)


async def test_a_worker_that_ignores_a_stop_is_ended(workers: Workers) -> None:
    manager = await workers.start(Deaf(), **QUICK)
    job = await manager.create(spec("forever", num_steps=100_000))
    await workers.service.until(job.id, lambda job: job.progress.step > 2)
    await manager.cancel(job.id)
    cancelled = await workers.service.state(job.id, JobState.CANCELLED)
    assert cancelled.attempt == 1
    assert any("a job has not stopped" in note for note in await workers.notes(job.id))


async def test_a_job_that_failed_unexpectedly_beside_others_gets_a_process_of_its_own(workers: Workers) -> None:
    finish = workers.service.finish
    manager = await workers.start(Spoilt(finish), Spoilt(finish), Spoilt(finish), max_jobs_per_worker=2)
    jobs = [await manager.create(spec("forever", num_steps=30, prompt=f"p-{number}")) for number in range(2)]
    for job in jobs:  # both were beside each other
        await workers.service.until(
            job.id, lambda now: now.attempt == 2 or (now.attempt, now.state) == (1, JobState.QUEUED)
        )
    finish.set()
    for job in jobs:
        done = await workers.service.state(job.id, JobState.SUCCEEDED)
        assert (done.attempt, done.failures) == (2, 0)
        assert workers.service.versions(done.spec.prompt) == [1]


async def test_a_job_that_fails_unexpectedly_alone_has_failed(workers: Workers) -> None:
    """A job fails after one failure beside others and one alone, or at once if it never had company."""
    manager = await workers.start(Spoilt(), Spoilt(), Spoilt())
    first = await workers.service.state((await manager.create(spec("bug"))).id, JobState.FAILED)
    second = await workers.service.state((await manager.create(spec("bug"))).id, JobState.FAILED)
    assert [first.attempt, second.attempt] == [1, 2]
    assert first.error == second.error
    assert first.error is not None
    assert first.error.code == "INTERNAL"
