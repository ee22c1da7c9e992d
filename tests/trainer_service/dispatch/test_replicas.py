"""Several trainer replicas on one PostgreSQL, and a PostgreSQL that goes away."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import PreconditionFailed
from tests import recovery
from tests.trainer_service.builders import spec
from tests.trainer_service.job_service import Service
from tests.trainer_service.postgres import Postgres
from tests.waiting import until
from trainer_service.jobs.model import Job
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.job_store import JobStore

SLACK_SECONDS = 300.0
"""What a busy machine may add to a time that is promised; half of the pauses and jumps of a clock here."""


@pytest.fixture
async def replicas(postgres: Postgres, tmp_path: Path) -> AsyncIterator[tuple[Service, Service]]:
    """Two services on one database and one prompt store. Not started; what a test starts is drained."""
    url = postgres.create_database(f"test_{uuid.uuid4().hex}")
    pair = Service(tmp_path), Service(tmp_path)
    for service in pair:
        service.url = url
    yield pair
    for service in pair:
        await service.drain()


async def test_two_replicas_share_the_work_and_no_job_runs_twice(replicas: tuple[Service, Service]) -> None:
    one, two = replicas
    await one.start(max_jobs_per_worker=2, max_workers=2)
    await two.start(max_jobs_per_worker=2, max_workers=2)
    jobs = [await one.manager.create(spec("forever", num_steps=60, prompt=f"p-{number}")) for number in range(10)]
    await until(lambda: all(any(trainer.log for trainer in service.trainers) for service in replicas))
    for service in replicas:
        service.finish.set()
    done = [await two.state(job.id, JobState.SUCCEEDED) for job in jobs]
    assert all(job.attempt == 1 for job in done)
    assert all(one.versions(job.spec.prompt) == [1] for job in done)
    by_replica = [{job_id for trainer in service.trainers for job_id, _, _ in trainer.log} for service in replicas]
    assert not by_replica[0] & by_replica[1]


async def test_requests_and_watches_reach_a_job_of_the_other_replica(replicas: tuple[Service, Service]) -> None:
    one, two = replicas
    await one.start()
    job = await one.manager.create(spec("forever", num_steps=1000))
    await one.state(job.id, JobState.RUNNING)
    await two.start()
    watched = asyncio.create_task(_states(two, job.id))
    await two.manager.pause(job.id)
    await two.state(job.id, JobState.PAUSED)
    await two.manager.cancel(job.id)
    assert await watched == [
        JobState.QUEUED,
        JobState.RUNNING,
        JobState.PAUSED,
        JobState.CANCELLED,
    ]


async def _states(service: Service, job_id: str) -> list[JobState]:
    return [event.payload.state async for event in service.manager.watch(job_id) if isinstance(event.payload, Job)]


async def test_the_jobs_of_a_dead_replica_move_within_its_lease(replicas: tuple[Service, Service]) -> None:
    """The limit is a lease and a quarter, the interval of the other replica's checks. The jobs don't back off, since
    they didn't cause the loss.
    """
    one, two = replicas
    patience: dict[str, Any] = {"lease_seconds": 2.0, "retry_first_seconds": 600.0, "retry_max_seconds": 600.0}
    await one.start(**patience)
    job = await one.manager.create(spec("forever", num_steps=400))
    reached = await one.until(job.id, lambda job: job.progress.step > 20)
    await two.start(**patience)
    await one.crash()
    two.finish.set()
    died_at = time.time()
    done = await two.state(job.id, JobState.SUCCEEDED)
    assert done.attempt == 2
    events = await asyncio.to_thread(two.store.events, job.id, 0)
    _, taken = [
        event.time for event in events if isinstance(event.payload, Job) and event.payload.state is JobState.QUEUED
    ]
    assert taken.timestamp() - died_at < 1.25 * 2.0 + SLACK_SECONDS
    assert two.versions("tone") == [1]
    assert min(step for _, _, step in two.trainers[0].log) > reached.progress.step - 5, (
        "it went on from the checkpoint in the database"
    )


async def test_a_clock_that_jumps_costs_no_lease(
    replicas: tuple[Service, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replicas
    for service in replicas:
        await service.start(lease_seconds=12.0)
    job = await one.manager.create(spec("forever", num_steps=1000))
    await one.until(job.id, lambda job: job.progress.step > 5)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 600)
    before = one.store.record(job.id).lease_until
    assert two.store.take_back(lambda record: record, lease_before=two.store.now()) == []
    while one.store.record(job.id).lease_until < before + 2.0:
        await asyncio.sleep(0.05)
    found = one.store.record(job.id)
    assert found.job.attempt == 1, "the other replica looked meanwhile"
    assert found.lease_until < real() + 12.0 + SLACK_SECONDS


async def test_a_database_that_is_stopped_for_a_while(postgres: Postgres, replicas: tuple[Service, Service]) -> None:
    service, _ = replicas
    await service.start()
    running = await service.manager.create(spec("forever", num_steps=400))
    await service.until(running.id, lambda job: job.progress.step > 20)
    waiting = await service.manager.create(spec("gone"))
    await asyncio.to_thread(postgres.stop)
    await until(lambda: service.trainers[0].log[-1][2] == 399)
    await asyncio.to_thread(postgres.start)
    started_at = time.time()
    await service.until(running.id, lambda job: job.progress.step == 399)
    recovery.note("PostgreSQL stopped and started: what workers reported meanwhile is stored", time.time() - started_at)
    service.finish.set()
    done = await service.state(running.id, JobState.SUCCEEDED)
    assert done.attempt == 1, "the worker went on training meanwhile"
    assert service.versions("tone") == [1]
    await service.state(waiting.id, JobState.FAILED)


@pytest.mark.parametrize(
    ("lease_seconds", "outage_seconds"),
    [(1, 1.5), (1.5, 1.5), *([(60, 60)] if recovery.IS_MEASURED else [])],
)
async def test_a_database_that_is_stopped_for_longer_than_the_replicas_are_trusted(
    lease_seconds: float, outage_seconds: float, postgres: Postgres, replicas: tuple[Service, Service]
) -> None:
    one, two = replicas
    for service in replicas:
        await service.start(lease_seconds=lease_seconds, max_infrastructure_failures=1000)
    jobs = [await one.manager.create(spec(num_steps=400)) for _ in range(4)]
    for job in jobs:
        await one.until(job.id, lambda job: job.progress.step > 20)
    await asyncio.to_thread(postgres.stop)
    await asyncio.sleep(outage_seconds)
    await asyncio.to_thread(postgres.start)
    back_at = time.time()
    for job in jobs:
        await two.state(job.id, JobState.SUCCEEDED)
    recovery.note(
        f"PostgreSQL stopped for {outage_seconds:g} s and started: four jobs published", time.time() - back_at
    )
    assert one.versions("tone") == [1, 2, 3, 4], "each job published once, by either replica"


async def test_sqlite_is_for_one_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    store = JobStore.open(url)
    with pytest.raises(PreconditionFailed, match="another trainer"):
        JobStore.open(url)
    store.close()
    JobStore.open(url).close()
