"""Failures of workers, which are threads here, and their effect on jobs. `tests/trainer_service/cluster` kills real
processes.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shared.errors import Unavailable
from shared.store.index import StoreIndex
from shared.store.local import LocalBackend
from shared.store.store import PromptStore
from tests.trainer_service.builders import spec
from tests.trainer_service.job_service import Service
from tests.waiting import until
from trainer_service.cluster.interface import WorkerLost
from trainer_service.database.database import Database
from trainer_service.jobs import transitions
from trainer_service.jobs.model import Checkpoint, Note
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.files import DirectoryFiles, FileKind
from trainer_service.jobs.store.job_store import StaleAttempt


async def notes(service: Service, job_id: str) -> list[str]:
    return [event.payload.text async for event in service.manager.watch(job_id) if isinstance(event.payload, Note)]


async def test_a_lost_worker_is_replaced_and_the_job_goes_on(service: Service) -> None:
    manager = await service.start()
    job = await manager.create(spec("forever", num_steps=150))
    reached = await service.until(job.id, lambda job: job.progress.step > 10)
    service.pool.workers[0].kill()
    service.finish.set()
    done = await service.state(job.id, JobState.SUCCEEDED)
    assert done.attempt == 2
    again = [step for trainer in service.trainers for id, attempt, step in trainer.log if attempt == 2]
    assert again[0] > reached.progress.step - 5
    assert service.versions("tone") == [1]
    assert any("lost its worker" in note for note in await notes(service, job.id))


async def test_a_job_whose_workers_always_die_fails_in_the_end(service: Service) -> None:
    manager = await service.start(max_infrastructure_failures=2)
    job = await manager.create(spec("crash"))
    failed = await service.state(job.id, JobState.FAILED)
    assert failed.error is not None
    assert failed.error.code == "WORKER_LOST"
    assert "the step thread crashed" in failed.error.message
    assert failed.attempt == 3


async def test_a_job_that_kills_workers_does_not_take_its_cohort_with_it(service: Service) -> None:
    """The other jobs have no checkpoint that would reset their losses, so they would fail too if they had to stay on
    its worker.
    """
    manager = await service.start(max_infrastructure_failures=3)
    bad = await manager.create(spec("crash"))
    good = [await manager.create(spec(num_steps=5, prompt=f"p-{number}")) for number in range(3)]
    failed = await service.state(bad.id, JobState.FAILED)
    assert failed.error is not None
    assert failed.error.code == "WORKER_LOST"
    for job in good:
        done = await service.state(job.id, JobState.SUCCEEDED)
        assert done.attempt <= 4
        assert service.versions(job.spec.prompt) == [1]


async def test_jobs_whose_worker_ran_out_of_memory_are_separated(service: Service) -> None:
    manager = await service.start()
    jobs = [await manager.create(spec("forever", num_steps=400)) for _ in range(2)]
    for job in jobs:
        await service.until(job.id, lambda job: job.progress.step > 5)

    async def out_of_memory(*_: object) -> None:
        raise WorkerLost("its node ran out of memory", out_of_memory=True)

    service.pool.workers[0].poll = out_of_memory
    for job in jobs:
        await service.until(job.id, lambda job: job.attempt == 2 or job.state is JobState.QUEUED)
    service.finish.set()
    done = [await service.state(job.id, JobState.SUCCEEDED) for job in jobs]
    assert [(job.attempt, job.failures) for job in done] == [(2, 0), (2, 0)]
    alone = [{id for id, _, _ in trainer.log} for trainer in service.trainers[1:]]
    assert sorted(map(sorted, alone)) == sorted([job.id] for job in jobs), "each in its own process"


async def test_a_worker_that_does_not_answer_is_replaced(service: Service) -> None:
    manager = await service.start(heartbeat_seconds=1.0, poll_seconds=0.1)
    job = await manager.create(spec("forever", num_steps=100))
    await service.until(job.id, lambda job: job.progress.step > 5)
    hanging = service.pool.workers[0]

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    hanging.poll = never
    service.configure(heartbeat_seconds=600.0)  # the other worker may be slow
    await service.until(job.id, lambda job: job.attempt == 2)
    service.finish.set()
    done = await service.state(job.id, JobState.SUCCEEDED)
    assert done.attempt == 2
    assert service.versions("tone") == [1]


async def test_an_attempt_that_was_given_up_is_not_heard(service: Service) -> None:
    """As if the lease had expired and another replica had taken the job: the worker continues to report, and nothing of
    it is stored.
    """
    manager = await service.start()
    job = await manager.create(spec("forever", num_steps=150))
    await service.until(job.id, lambda job: job.progress.step > 5)
    taken = service.store.take_back(
        lambda record: transitions.lost(record, time.time(), "lease ran out", service.config), lease_before=math.inf
    )
    assert [job.state for job in taken] == [JobState.QUEUED]
    with pytest.raises(StaleAttempt):
        service.store.change(job.id, lambda record: record, attempt=1)
    service.finish.set()
    done = await service.state(job.id, JobState.SUCCEEDED)
    assert done.attempt == 2
    assert service.versions("tone") == [1]
    steps = [event.payload.step async for event in manager.watch(job.id) if isinstance(event.payload, Checkpoint)]
    assert steps == sorted(steps)


async def test_a_restart_takes_up_what_was_running_and_what_waited(service: Service) -> None:
    manager = await service.start(max_jobs_per_worker=2)
    running = [await manager.create(spec("forever", num_steps=200, prompt=f"r-{n}")) for n in range(2)]
    for job in running:
        await service.until(job.id, lambda job: job.progress.step > 10)
    waiting = await manager.create(spec(prompt="waits"))
    await service.crash()
    service.finish.set()
    await service.start()
    for job in [*running, waiting]:
        done = await service.state(job.id, JobState.SUCCEEDED)
        assert service.versions(done.spec.prompt) == [1]
    assert all(
        attempt == 1 or step > 5 for trainer in service.trainers for _, attempt, step in trainer.log if attempt == 2
    )


async def test_a_cancellation_survives_a_restart(service: Service) -> None:
    manager = await service.start()
    job = await manager.create(spec("forever", num_steps=1000))
    await service.until(job.id, lambda job: job.progress.step > 2)
    await asyncio.to_thread(service.store.change, job.id, lambda record: record.with_job(state=JobState.CANCELLING))
    await service.crash()
    await service.start()
    await service.state(job.id, JobState.CANCELLED)


async def test_drain_puts_jobs_back_with_their_newest_state(service: Service) -> None:
    manager = await service.start()
    job = await manager.create(spec("forever", num_steps=200))
    await service.until(job.id, lambda job: job.progress.step > 10)
    await service.drain(grace_seconds=600)  # a worker that has no processor for long still hands over its newest state
    service.finish.set()
    await service.start()
    done = await service.state(job.id, JobState.SUCCEEDED)
    assert (done.attempt, done.failures) == (2, 0)
    steps = [step for trainer in service.trainers for _, _, step in trainer.log]
    assert steps == list(range(1, 201)), "no step was done twice or left out"


async def test_a_database_that_is_away_for_a_while_loses_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await service.start()
    job = await manager.create(spec("forever", num_steps=60))
    await service.until(job.id, lambda job: job.progress.step > 5)
    unavailable = True
    write = Database.write

    def refuse(self: Database) -> object:
        if unavailable:
            raise Unavailable("the job database is unavailable")
        return write(self)

    monkeypatch.setattr(Database, "write", refuse)
    with pytest.raises(Unavailable):
        await manager.create(spec())
    service.finish.set()
    await until(lambda: any(step == 60 for trainer in service.trainers for _, _, step in trainer.log))
    unavailable = False
    done = await service.state(job.id, JobState.SUCCEEDED)
    assert done.attempt == 1
    assert service.versions("tone") == [1]


async def test_a_full_disk_under_the_checkpoints_is_waited_out(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await service.start()
    full = True
    replace = os.replace

    def no_space(source: str, target: str) -> None:
        if full and "checkpoints" in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", no_space)
    job = await manager.create(spec(num_steps=20))
    await until(lambda: any(step == 20 for trainer in service.trainers for _, _, step in trainer.log))
    full = False
    await service.state(job.id, JobState.SUCCEEDED)
    assert service.versions("tone") == [1]


async def test_a_damaged_checkpoint_begins_anew(service: Service) -> None:
    manager = await service.start()
    job = await manager.create(spec("forever", num_steps=100))
    await service.until(job.id, lambda job: job.progress.step > 10)
    await manager.pause(job.id)
    await service.state(job.id, JobState.PAUSED)
    path = service.directory / "checkpoints" / job.id / "checkpoint"
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(data)
    service.finish.set()
    await manager.resume(job.id)
    await service.state(job.id, JobState.SUCCEEDED)
    assert [step for trainer in service.trainers for _, attempt, step in trainer.log if attempt == 2] == list(
        range(1, 101)
    )


async def test_files_of_ended_jobs_are_removed_at_start(service: Service) -> None:
    files = DirectoryFiles(service.directory / "checkpoints")
    files.save("01abc", FileKind.CHECKPOINT, 1, b"left behind")
    await service.start()
    assert files.load("01abc", FileKind.CHECKPOINT) is None


class Away(PromptStore):
    """A store that can't be read for a while."""

    def __init__(self, directory: Path) -> None:
        super().__init__(LocalBackend(directory))
        self.reads = 0
        self.is_away = True

    def refresh(self) -> StoreIndex:  # type: ignore[override]
        self.reads += 1
        if self.is_away:
            raise Unavailable("the prompt store is unavailable")
        return super().refresh()


async def test_a_job_waits_for_what_it_needs_and_can_be_cancelled_meanwhile(service: Service) -> None:
    store = Away(service.directory / "prompts")
    manager = await service.start(prompt_store=store, max_infrastructure_failures=1)
    one, two = [await manager.create(spec()) for _ in range(2)]
    while store.reads < 8:
        await asyncio.sleep(0.01)
    await manager.cancel(two.id)
    await service.state(two.id, JobState.CANCELLED)
    store.is_away = False
    done = await service.state(one.id, JobState.SUCCEEDED)
    assert (done.attempt, done.failures) == (1, 0)
    assert sum("waiting: the prompt store is unavailable" in note for note in await notes(service, one.id)) == 1


async def test_a_base_model_that_does_not_load_keeps_no_other_from_running(service: Service) -> None:
    manager = await service.start()
    load = service._load

    def load_some(base_model: str) -> object:
        if base_model == "broken":
            raise RuntimeError("no such weights")
        return load(base_model)

    service.pool._load = load_some
    sound = service.base
    service.admission.base = sound.model_copy(update={"base_model": replace(sound.base_model, id="broken")})
    broken = await manager.create(spec())
    service.admission.base = sound
    good = await manager.create(spec())
    await service.state(good.id, JobState.SUCCEEDED)
    assert (await manager.get(broken.id)).state is JobState.QUEUED
    assert (await manager.cancel(broken.id)).state is JobState.CANCELLED
