"""Leases: the effect of a lost replica on its jobs, and which clock counts. Limits hold for concurrent creations."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared.errors import Overloaded, Unavailable
from tests.trainer_service.builders import record, spec
from tests.trainer_service.job_service import Service
from trainer_service.dispatch.leases import Leases
from trainer_service.jobs import transitions
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.model import Job
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.job_store import JobStore


def test_the_first_loss_of_a_replica_costs_no_pause_and_the_next_ones_do(store: JobStore) -> None:
    job = store.create(record(), max_queued=10, max_active_of_caller=10)
    config = JobsConfig(retry_first_seconds=100)
    for failures in (1, 2):
        now = time.time()
        assert store.claim("tiny", "dead", store.now() - 1, now) is not None
        orphaned = partial(transitions.orphaned, now=now, reason="gone", config=config)
        [taken] = store.take_back(orphaned, lease_before=store.now())
        assert (taken.id, taken.failures) == (job.id, failures)
        assert bool(store.heads(now)) == (failures == 1)
    assert store.record(job.id).not_before == pytest.approx(now + 200)


def test_a_replica_takes_too_many_jobs_with_it_only_so_often(store: JobStore) -> None:
    job = store.create(record(), max_queued=10, max_active_of_caller=10)
    config = JobsConfig(max_infrastructure_failures=1, retry_first_seconds=0)
    for state in (JobState.QUEUED, JobState.FAILED):
        assert store.claim("tiny", "dead", store.now() - 1, time.time()) is not None
        store.take_back(lambda old: transitions.orphaned(old, time.time(), "gone", config), lease_before=store.now())
        assert store.record(job.id).job.state is state


def test_leases_run_by_the_databases_clock_where_replicas_share_one(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = time.time()
    assert abs(store.now() - here) < 60
    monkeypatch.setattr(time, "time", lambda: here + 3600)
    assert (store.now() - here < 60) == store.is_shared


def test_a_deadline_passes_by_the_clock_of_the_trainer_that_evaluates_it(store: JobStore) -> None:
    now = time.time()
    waiting = record(spec(deadline=datetime.fromtimestamp(now + 90, UTC)))
    job = store.create(waiting, max_queued=10, max_active_of_caller=10)
    for clock, state in ((now + 60, JobState.QUEUED), (now + 91, JobState.FAILED)):
        store.expire(partial(transitions.expired, now=clock), clock)
        assert store.record(job.id).job.state is state


async def test_leases_are_renewed_again_after_the_database_was_away(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[float] = []
    renew = JobStore.renew

    def refuse(self: JobStore, owner: str, lease_until: float) -> None:
        if len(refused) < 2:
            refused.append(lease_until)
            raise Unavailable("the job database is unavailable") if refused[1:] else ValueError("unforeseen")
        renew(self, owner, lease_until)

    monkeypatch.setattr(JobStore, "renew", refuse)
    manager = await service.start(lease_seconds=0.4)
    job = await manager.create(spec("forever", num_steps=1000))
    await service.until(
        job.id, lambda job: job.progress.step > 5 and service.store.record(job.id).lease_until > refused[-1] + 1
    )
    assert len(refused) == 2


async def test_a_trainer_that_waited_for_the_database_lets_the_others_renew_their_leases_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, taken, has_started, waited_seconds = list[str](), asyncio.Event(), False, 0.0

    async def call(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return method(*args, **options)

    def now() -> float:
        nonlocal waited_seconds
        if has_started:
            waited_seconds = 0.3  # longer than half the lease
        return time.time()

    clock = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + waited_seconds)
    monkeypatch.setattr("trainer_service.dispatch.leases.time", clock)

    def renew(owner: str, lease_until: float) -> None:
        calls.append("renew")

    def take_back(*args: Any, **options: Any) -> list[Job]:
        if calls:  # not that of the start
            calls.append("take back")
            taken.set()
        return []

    store = SimpleNamespace(is_shared=True, now=now, renew=renew, take_back=take_back)
    database = SimpleNamespace(call=call, retry=call)
    config = SimpleNamespace(lease_seconds=0.4, tick_seconds=0.1)
    context = SimpleNamespace(store=store, database=database, owner="one", config=config)
    leases = Leases(cast(Any, context))
    await leases.start()
    has_started = True
    await taken.wait()
    await leases.stop()
    assert calls[:2] == ["renew", "renew"]


async def test_a_lease_ends_by_the_databases_clock_without_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    here, questions = 100.0, 0

    async def call(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return method(*args, **options)

    def now() -> float:
        nonlocal here, questions
        here, questions = here + 2, questions + 1
        return 5000.0  # the time when the question came, two seconds before its answer

    clock = SimpleNamespace(time=time.time, monotonic=lambda: here)
    monkeypatch.setattr("trainer_service.dispatch.leases.time", clock)
    store = SimpleNamespace(is_shared=True, now=now, take_back=lambda *args, **options: [])
    config = SimpleNamespace(lease_seconds=20)
    context = SimpleNamespace(store=store, database=SimpleNamespace(call=call, retry=call), owner="one", config=config)
    leases = Leases(cast(Any, context))
    await leases.start()
    here += 3
    assert (leases.until(), questions) == (5023.0, 1)
    await leases.stop()


async def test_a_trainer_waits_for_a_database_that_fails_while_it_starts(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("take_back", "ids_with_files"):
        refuse_once(monkeypatch, name)
    manager = await service.start()
    job = await manager.create(spec(num_steps=2))
    await service.until(job.id, lambda job: job.state is JobState.SUCCEEDED)


def refuse_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The first call of this method of the job store raises Unavailable."""
    method, refused = getattr(JobStore, name), list[str]()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if not refused:
            refused.append(name)
            raise Unavailable("the job database is unavailable")
        return method(*args, **kwargs)

    monkeypatch.setattr(JobStore, name, refuse)


def test_creations_of_one_caller_at_the_same_moment_keep_to_its_limit(store: JobStore) -> None:
    start = threading.Barrier(12)

    def create(number: int) -> bool:
        start.wait()
        try:
            store.create(record(caller="busy"), max_queued=1000, max_active_of_caller=5)
        except Overloaded:
            return False
        return True

    with ThreadPoolExecutor(12) as threads:
        created = list(threads.map(create, range(12)))
    assert sum(created) == 5
    assert store.counts() == {JobState.QUEUED: 5}
