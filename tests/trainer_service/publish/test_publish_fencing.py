"""A replica that lost a trained job while the prompt store was unavailable publishes nothing of it later."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from pathlib import Path

import pytest

from shared.errors import Unavailable
from shared.store.local import LocalBackend
from shared.store.store import PromptStore, PublishedVersion
from shared.values.spec import PublishGate, PublishPolicy
from tests.trainer_service.builders import record, spec
from tests.trainer_service.job_service import Service, expire_leases
from tests.trainer_service.postgres import Postgres
from tests.waiting import until
from trainer_service.jobs import transitions
from trainer_service.jobs.model import Job
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.job_store import JobStore, StaleAttempt
from trainer_service.publish import publisher
from trainer_service.publish.publication import Publication

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(publisher, "_LAST_PAUSE_SECONDS", 0.02)


class Distant(PromptStore):
    """One replica's view of the store. While `unavailable`, no publication begins; until `held` is set, each waits
    before its commit.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(LocalBackend(directory / "prompts"))
        self.unavailable = False
        self.arrived, self.held = threading.Event(), threading.Event()
        self.held.set()

    def publish(self, *args: object, **options: object) -> PublishedVersion:
        if self.unavailable:
            self.arrived.set()
            raise Unavailable("the store is unavailable")
        return super().publish(*args, **options)  # type: ignore[arg-type]

    def put_blob(self, digest: str, data: bytes) -> bool:
        self.arrived.set()
        self.held.wait()
        return super().put_blob(digest, data)


def cancel_elsewhere(service: Service, job: Job) -> None:
    """Does what another replica does to a job with an expired lease, so that this replica's dispatcher has nothing to
    claim.
    """
    service.store.change(job.id, lambda old: transitions.cancel(old, time.time()))
    ended = service.store.change(job.id, lambda old: transitions.cancelled(old, time.time()))
    assert ended.job.state is JobState.CANCELLED


async def until_publisher_is_idle(service: Service) -> None:
    """Waits until the replica's publisher has no jobs."""
    await until(lambda: not service.manager._publisher.job_ids)


def nothing_is_published(service: Service) -> bool:
    return "tone" not in service.prompt_store.refresh().prompts


async def test_a_job_that_was_cancelled_elsewhere_while_the_store_was_unavailable(service: Service) -> None:
    store = Distant(service.directory)
    store.unavailable = True
    job = await (await service.start(prompt_store=store)).create(spec())
    await until(store.arrived.is_set)
    cancel_elsewhere(service, job)
    store.unavailable = False
    await until_publisher_is_idle(service)
    assert nothing_is_published(service)
    assert (await service.manager.get(job.id)).state is JobState.CANCELLED


async def test_a_job_that_was_cancelled_elsewhere_between_the_upload_and_the_commit(service: Service) -> None:
    store = Distant(service.directory)
    store.held.clear()
    job = await (await service.start(prompt_store=store)).create(spec())
    await until(store.arrived.is_set)
    cancel_elsewhere(service, job)
    store.held.set()
    await until_publisher_is_idle(service)
    assert nothing_is_published(service)


async def test_a_cancellation_between_the_upload_and_the_commit(service: Service) -> None:
    store = Distant(service.directory)
    store.held.clear()
    manager = await service.start(prompt_store=store)
    job = await manager.create(spec())
    await until(store.arrived.is_set)
    assert (await manager.cancel(job.id)).state is JobState.CANCELLING
    store.held.set()
    await service.state(job.id, JobState.CANCELLED)
    assert nothing_is_published(service)


async def test_a_cancellation_of_a_job_that_its_gate_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = publisher.Publisher._publish

    async def cancelled_first(self: publisher.Publisher, job: Job, outcome: Publication | None) -> None:
        service.store.change(job.id, lambda old: transitions.cancel(old, time.time()))
        await publish(self, job, outcome)

    monkeypatch.setattr(publisher.Publisher, "_publish", cancelled_first)
    refused = spec(publish=PublishPolicy(gate=PublishGate(minimum_metric=1e-9)))
    job = await (await service.start()).create(refused)
    await service.state(job.id, JobState.CANCELLED)
    assert nothing_is_published(service)


async def test_a_database_that_is_away_at_the_commit_is_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    hold = JobStore.hold

    def refuse_at_first(self: JobStore, job_id: str, *rest: object) -> JobState:
        if len(refused) < 3:
            refused.append(job_id)
            raise Unavailable("the job database is unavailable")
        return hold(self, job_id, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(JobStore, "hold", refuse_at_first)
    job = await (await service.start()).create(spec())
    await service.state(job.id, JobState.SUCCEEDED)
    assert service.versions("tone") == [1]
    assert refused == [job.id] * 3


async def test_a_replica_that_was_cut_off_from_the_database(postgres: Postgres, tmp_path: Path) -> None:
    """Its lease expires and the other replica takes and cancels the job; then it reaches the database and the store
    again.
    """
    one, two = Service(tmp_path), Service(tmp_path)
    one.url = two.url = postgres.create_database(f"test_{uuid.uuid4().hex}")
    stores = Distant(tmp_path), Distant(tmp_path)
    for store in stores:
        store.unavailable = True
    try:
        await one.start(prompt_store=stores[0])
        job = await one.manager.create(spec())
        await until(stores[0].arrived.is_set)

        def cut_off(*_: object) -> None:
            raise Unavailable("the job database is unavailable")

        one.store.renew = cut_off  # type: ignore[method-assign, assignment]
        expire_leases(one.store, one.manager._context.owner)
        await two.start(prompt_store=stores[1])
        await two.until(job.id, lambda job: job.attempt == 2)
        await two.manager.cancel(job.id)
        await two.state(job.id, JobState.CANCELLED)
        stores[0].unavailable = stores[1].unavailable = False
        await until_publisher_is_idle(one)
        assert nothing_is_published(one)
        assert (await one.manager.get(job.id)).state is JobState.CANCELLED
    finally:
        await one.drain()
        await two.drain()


async def test_drain_waits_for_a_publication_under_way(service: Service) -> None:
    store = Distant(service.directory)
    store.held.clear()
    job = await (await service.start(prompt_store=store)).create(spec())
    await until(store.arrived.is_set)
    asyncio.get_running_loop().call_later(0.2, store.held.set)
    await service.drain()
    manager = await service.start()
    assert (await manager.get(job.id)).state is JobState.SUCCEEDED
    assert service.versions("tone") == [1]


async def test_a_publication_that_hangs_through_a_drain_keeps_its_lease(service: Service) -> None:
    """If the job were released at once, another replica could cancel it while its version is being published."""
    store = Distant(service.directory)
    store.held.clear()
    job = await (await service.start(prompt_store=store)).create(spec())
    await until(store.arrived.is_set)
    dispatcher, files = service.manager._dispatcher, service.manager._context
    await dispatcher.drain(0.5)
    kept = service.store.record(job.id)
    assert (kept.job.state, kept.owner) == (JobState.RUNNING, files.owner)
    store.held.set()
    await service.drain()


def test_only_the_attempt_that_has_the_job_holds_it(store: JobStore) -> None:
    job = store.create(record(), max_queued=10, max_active_of_caller=10)
    now = store.now()
    with pytest.raises(StaleAttempt):
        store.hold(job.id, 0, "me", now + 60)
    assert store.claim("tiny", "me", now - 1, time.time()) is not None
    for attempt, owner in ((0, "me"), (2, "me"), (1, "other")):
        with pytest.raises(StaleAttempt):
            store.hold(job.id, attempt, owner, now + 60)
    assert store.hold(job.id, 1, "me", now + 60) is JobState.RUNNING, "it ran out, but no other replica took it"
    assert store.take_back(lambda old: old, lease_before=now + 59) == []
    store.change(job.id, lambda old: transitions.cancel(old, time.time()))
    assert store.hold(job.id, 1, "me", now + 60) is JobState.CANCELLING
    store.change(job.id, lambda old: transitions.left_worker(old, time.time()))
    for job_id in (job.id, "unknown"):
        with pytest.raises(StaleAttempt):
            store.hold(job_id, 1, "me", now + 60)
