"""Several trainers on one PostgreSQL share one limit of workers."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.trainer_service.builders import record, spec
from tests.trainer_service.job_service import Service, expire_leases
from tests.trainer_service.postgres import Postgres
from tests.waiting import until
from trainer_service.database import schema
from trainer_service.database.database import Database
from trainer_service.jobs import transitions
from trainer_service.jobs.record import Record
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store import worker_slots
from trainer_service.jobs.store.job_store import JobStore

NOW = 1000.0


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.create_database(f"test_{uuid.uuid4().hex}")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()


@pytest.fixture
async def replicas(url: str, tmp_path: Path) -> AsyncIterator[list[Service]]:
    """Three services on one database and one prompt store. Not started; what a test starts is drained."""
    made = [Service(tmp_path) for _ in range(3)]
    for service in made:
        service.url = url
    yield made
    for service in made:
        service.finish.set()
        await service.drain()


def share(database: Database, owner: str, wanted: int, *, beyond: bool = False, most: int = 4) -> tuple[int, bool]:
    found = worker_slots.share(database, owner, wanted, max_workers=most, lease_until=NOW, beyond_part=beyond)
    return found.granted, found.others_lack


def total(database: Database) -> int:
    """Slots of all replicas together."""
    return sum(database.scalars(select(schema.worker_slots.c.slots)))


def test_each_gets_an_equal_part_and_what_is_left_if_no_other_takes_it(database: Database) -> None:
    assert share(database, "a", 0) == (0, False)
    assert share(database, "b", 0) == (0, False)
    assert share(database, "a", 4) == (2, False)
    assert share(database, "a", 4, beyond=True) == (4, False)
    assert share(database, "b", 3) == (0, False), "a does not lack any"
    assert share(database, "a", 4) == (4, True), "no replica has to give back what it uses"
    assert share(database, "a", 3) == (3, True)
    assert share(database, "a", 4, beyond=True) == (3, True), "b has less than its part"
    assert share(database, "a", 3) == (3, True)
    assert share(database, "b", 3) == (1, False)
    assert share(database, "b", 3, beyond=True) == (1, False)
    assert total(database) == 4


@pytest.mark.parametrize(("most", "parts"), [(1, [1, 0]), (3, [2, 1]), (4, [2, 2])])
def test_a_part_is_rounded_up_and_the_limit_holds(database: Database, most: int, parts: list[int]) -> None:
    for owner in "ab":
        share(database, owner, 0, most=most)
    assert [share(database, owner, 4, most=most)[0] for owner in "ab"] == parts


def test_slots_come_back_with_their_owners_lease_and_a_slow_owner_starts_anew(url: str) -> None:
    store = JobStore.open(url)
    database = store.database
    assert share(database, "slow", 4)[0] == 4
    store.renew("slow", NOW + 50)
    store.take_back(lambda record: record, lease_before=NOW + 40, except_owner="other")
    assert share(database, "other", 4, beyond=True)[0] == 0
    store.take_back(lambda record: record, lease_before=NOW + 60, except_owner="other")
    assert share(database, "other", 4, beyond=True)[0] == 4
    store.renew("slow", NOW + 100)
    assert share(database, "slow", 4, beyond=True)[0] == 0, "it has four workers and no slots: they end"
    worker_slots.release(database, "other")
    assert share(database, "slow", 4, beyond=True)[0] == 4
    store.close()


def test_slots_stay_while_one_job_of_their_owner_has_a_later_lease(url: str) -> None:
    store = JobStore.open(url)
    database = store.database
    share(database, "slow", 4)
    store.create(record(queued_at=NOW - 1), max_queued=9, max_active_of_caller=9)
    store.claim("tiny", "slow", NOW + 30, NOW)

    def give_back(record: Record) -> Record:
        return transitions.left_worker(record, NOW)

    assert store.take_back(give_back, lease_before=NOW + 20) == []
    assert total(database) == 4, "it may come back in time, and go on with the job"
    assert len(store.take_back(give_back, lease_before=NOW + 40)) == 1
    assert total(database) == 0
    store.close()


def test_the_limit_holds_however_many_ask_at_once(database: Database) -> None:
    begin = threading.Barrier(6)

    def ask(owner: str) -> int:
        begin.wait()
        return max(share(database, owner, wanted, beyond=True, most=5)[0] for wanted in (1, 4, 2, 5, 3))

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(ask, "abcdef"))
    assert total(database) <= 5


def num_workers(*services: Service) -> int:
    return sum(len(service.manager._dispatcher.workers) for service in services if service.manager is not None)


def lacks(service: Service) -> bool:
    """It has asked for more workers than it got."""
    with service.store.database.read() as connection:
        lacking = select(schema.worker_slots.c.lacking).where(
            schema.worker_slots.c.owner == service.manager._context.owner
        )
        return bool(connection.scalar(lacking))


def watch(*services: Service) -> tuple[list[int], asyncio.Task[None]]:
    """The most workers at one time, and the task that looks."""
    most = [0]

    async def look() -> None:
        while True:
            most[0] = max(most[0], num_workers(*services))
            await asyncio.sleep(0)

    return most, asyncio.create_task(look())


async def test_two_trainers_have_max_workers_together_and_one_that_is_killed_leaves_its_part(
    replicas: list[Service],
) -> None:
    one, two, _ = replicas
    config: dict[str, Any] = {"max_workers": 2, "max_jobs_per_worker": 1}
    await one.start(**config, lease_seconds=60.0)
    await two.start(**config, lease_seconds=4.0)
    most, looking = watch(one, two)
    jobs = [await one.manager.create(spec("forever", num_steps=50, prompt=f"p-{number}")) for number in range(6)]
    await until(lambda: len(one.trainers) == len(two.trainers) == 1)
    await until(lambda: one.store.counts().get(JobState.RUNNING) == 2)
    assert most == [2]
    owner = one.manager._context.owner
    await one.crash()
    expire_leases(two.store, owner)
    await until(lambda: num_workers(two) == 2)
    assert total(two.store.database) == 2
    looking.cancel()
    one.finish.set()
    two.finish.set()
    for job in jobs:
        await two.state(job.id, JobState.SUCCEEDED)
    assert most == [2]


async def test_a_trainer_that_was_stopped_for_longer_than_its_lease_ends_its_workers(replicas: list[Service]) -> None:
    one, two, _ = replicas
    config: dict[str, Any] = {"max_workers": 2, "max_jobs_per_worker": 1}
    await one.start(**config, lease_seconds=60.0)
    jobs = [await one.manager.create(spec("forever", num_steps=50, prompt=f"p-{number}")) for number in range(4)]
    await until(lambda: one.store.counts().get(JobState.RUNNING) == 2)
    dispatcher = one.manager._dispatcher
    assert dispatcher._task is not None
    dispatcher._task.cancel()
    await dispatcher._leases.stop()
    expire_leases(one.store, one.manager._context.owner)
    await two.start(**config, lease_seconds=4.0)
    await until(lambda: num_workers(two) == 2)
    dispatcher._task = asyncio.create_task(dispatcher._run())
    await dispatcher._leases.start()
    await until(lambda: num_workers(one) == 0)
    assert num_workers(two) == 2
    for service in (one, two):
        service.finish.set()
    for job in jobs:
        await two.state(job.id, JobState.SUCCEEDED)


async def test_a_third_trainer_comes_and_goes_within_the_limit(replicas: list[Service]) -> None:
    """As in a rollout: one drains while another has started."""
    config: dict[str, Any] = {"max_workers": 3, "max_jobs_per_worker": 1}
    one, two, three = replicas
    for service in (one, two):
        await service.start(**config)
    most, looking = watch(one, two, three)
    jobs = [await one.manager.create(spec("forever", num_steps=50, prompt=f"p-{number}")) for number in range(6)]
    await until(lambda: num_workers(one, two) == 3)
    await three.start(**config)
    await until(lambda: lacks(three))
    await one.drain()
    await until(lambda: num_workers(three) > 0)
    for service in (one, two, three):
        service.finish.set()
    for job in jobs:
        await two.state(job.id, JobState.SUCCEEDED)
    looking.cancel()
    assert most == [3]


async def test_an_idle_trainer_gives_its_part_to_one_that_needs_it(replicas: list[Service]) -> None:
    one, two, _ = replicas
    await one.start(max_workers=1, worker_idle_seconds=3600)
    job = await one.manager.create(spec(num_steps=5))
    await one.state(job.id, JobState.SUCCEEDED)
    assert num_workers(one) == 1
    one.manager._dispatcher.may_launch = lambda base_model: False  # type: ignore[method-assign] # its launches fail, and it waits
    await two.start(max_workers=1)
    later = await two.manager.create(spec(num_steps=5, prompt="other"))
    await two.state(later.id, JobState.SUCCEEDED)
    assert (num_workers(one), num_workers(two)) == (0, 1)


async def test_one_trainer_alone_asks_no_other(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_slots, "share", None)
    await service.start(max_workers=2, max_jobs_per_worker=1)
    jobs = [await service.manager.create(spec("forever", num_steps=20, prompt=f"p-{number}")) for number in range(4)]
    await until(lambda: len(service.trainers) == 2)
    service.finish.set()
    for job in jobs:
        await service.state(job.id, JobState.SUCCEEDED)
    assert len(service.trainers) == 2
