"""A worker that doesn't answer a request to stop a job or to end delays nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.trainer_service.builders import effective_spec, spec
from tests.trainer_service.job_service import Service
from tests.waiting import until
from trainer_service.dispatch.background_tasks import BackgroundTasks
from trainer_service.jobs.states import JobState


async def hang(*_: object) -> None:
    await asyncio.Event().wait()


def other_model(service: Service) -> None:
    """Jobs created from now on need another base model, and so another worker."""
    base = service.base
    service.admission.base = base.model_copy(update={"base_model": replace(base.base_model, id="other")})


async def with_a_deaf_worker(service: Service) -> str:
    """A running job whose worker never answers a stop."""
    manager = await service.start(max_workers=2, lease_seconds=0.4)
    job = await manager.create(spec("forever", num_steps=1000))
    await service.until(job.id, lambda job: job.progress.step > 2)
    service.pool.workers[0].stop = hang
    return job.id


async def test_other_jobs_start_and_leases_are_renewed(service: Service) -> None:
    deaf = await with_a_deaf_worker(service)
    await service.manager.cancel(deaf)
    other_model(service)
    job = await service.manager.create(spec())
    await service.state(job.id, JobState.SUCCEEDED)
    lease_until = service.store.record(deaf).lease_until
    await until(lambda: service.store.record(deaf).lease_until > lease_until + service.config.lease_seconds)
    assert (await service.manager.get(deaf)).state is JobState.CANCELLING
    stops = [task for task in asyncio.all_tasks() if task.get_name().startswith("dispatcher stop")]
    assert len(stops) == 1, "one for each job, however many rounds asked"


async def test_what_a_dead_worker_was_asked_ends_with_it(service: Service) -> None:
    deaf = await with_a_deaf_worker(service)
    await service.manager.cancel(deaf)
    service.pool.workers[0].kill()
    await service.state(deaf, JobState.CANCELLED)
    await until(lambda: not any(task.get_name().startswith("dispatcher stop") for task in asyncio.all_tasks()))


@pytest.mark.parametrize("silent", [("stop",), ("stop", "close")])
async def test_drain_ends_within_its_grace_time(service: Service, silent: tuple[str, ...]) -> None:
    deaf = await with_a_deaf_worker(service)
    other_model(service)
    fine = await service.manager.create(spec("forever", num_steps=1000))
    await service.until(fine.id, lambda job: job.progress.step > 2)
    worker = service.pool.workers[0]
    close = worker.close
    for method in silent:
        setattr(worker, method, hang)
    await service.manager._dispatcher.drain(4.0)  # enough for the healthy worker, and the other one hangs forever
    for job_id in (deaf, fine.id):
        assert service.store.record(job_id).job.state is JobState.QUEUED
    worker.close = close
    await service.drain()


async def test_a_worker_that_does_not_end_makes_way_all_the_same(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer_service.dispatch.dispatcher._END_SECONDS", 0.1)
    manager = await service.start(max_workers=1)
    job = await manager.create(spec())
    await service.state(job.id, JobState.SUCCEEDED)
    worker = service.pool.workers[0]
    close = worker.close
    worker.close = hang
    other_model(service)
    job = await manager.create(spec())
    await service.state(job.id, JobState.SUCCEEDED)
    assert [worker.base_model for worker in service.pool.workers] == [effective_spec().base_model.id, "other"]
    worker.close = close
    await manager._dispatcher.drain(1.0)
    await service.drain()


async def test_a_background_task_that_fails_is_logged_and_can_be_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks, begun = BackgroundTasks(), []

    async def fail() -> None:
        begun.append(1)
        raise RuntimeError("no luck")

    for _ in range(2):
        tasks.begin(("tidy", "a job"), fail)
        tasks.begin(("tidy", "a job"), fail)
        await tasks.wait([("tidy", "a job"), ("never", "begun")], 60)
        await asyncio.sleep(0)
    assert len(begun) == 2
    assert caplog.text.count("tidy a job failed") == 2
