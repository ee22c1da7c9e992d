"""Claims of jobs by trainers, on SQLite and on PostgreSQL: order, leases, attempts that were given up."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import pytest

from shared.values.results import TuningResult
from tests.trainer_service.builders import record, spec
from tests.trainer_service.jobs.store.records import claim, create
from trainer_service.jobs import transitions
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.job_store import Holding, JobStore, Look, StaleAttempt


def test_claims_follow_priority_and_age(store: JobStore) -> None:
    now = time.time()
    old = create(store, record(queued_at=now - 60))
    urgent = create(store, record(spec(priority=1), queued_at=now))
    new = create(store, record(queued_at=now))
    create(store, record(queued_at=now - 100, base_model="another"))
    assert [store.get(job.id).queue_position for job in (urgent, old, new)] == [0, 2, 3]
    claimed = [claim(store) for _ in range(4)]
    assert [taken.job.id if taken else None for taken in claimed] == [urgent.id, old.id, new.id, None]
    first = claimed[0]
    assert first is not None
    assert (first.job.state, first.job.attempt, first.owner) == (JobState.RUNNING, 1, "me")
    assert first.job.start_time is not None
    assert store.events(urgent.id, 1)[0].payload == first.job


def test_many_claim_at_once_and_no_job_is_claimed_twice(store: JobStore) -> None:
    ids = {create(store).id for _ in range(40)}
    with ThreadPoolExecutor(4) as threads:
        claimed = [taken.job.id for taken in threads.map(lambda n: claim(store, f"owner-{n}"), range(48)) if taken]
    assert len(claimed) == 40
    assert set(claimed) == ids


def test_a_job_that_needs_a_fresh_worker_is_claimed_only_for_one(store: JobStore) -> None:
    job = create(store)
    taken = claim(store)
    assert taken is not None
    store.change(job.id, lambda old: transitions.separated(old, time.time()), attempt=1)
    assert store.heads(time.time())[0].exclusive
    assert claim(store) is None
    again = claim(store, exclusive=True)
    assert again is not None
    assert (again.job.id, again.job.attempt) == (job.id, 2)


def test_a_look_shows_what_a_replica_has_and_which_waiting_jobs_need_it(store: JobStore) -> None:
    now = time.time()
    job = create(store, record(spec(deadline=datetime.fromtimestamp(now + 90, UTC))))
    assert store.look("me", now) == Look([], any_past_deadline=False, any_trained=False)
    assert store.look("me", now + 91) == Look([], any_past_deadline=True, any_trained=False)
    claim(store)
    holding = Holding(job.id, 1, JobState.RUNNING, pausing=False)
    assert store.look("me", now + 91) == Look([holding], any_past_deadline=False, any_trained=False)
    store.change(job.id, lambda old: transitions.trained(old, now), attempt=1)
    orphaned = partial(transitions.orphaned, now=now, reason="gone", config=JobsConfig())
    store.take_back(orphaned, lease_before=math.inf)
    assert store.look("me", now + 91) == Look([], any_past_deadline=False, any_trained=True)


def test_back_off_hides_a_job_until_its_time(store: JobStore) -> None:
    job = create(store)
    claim(store)
    config = JobsConfig(retry_first_seconds=30)
    store.change(job.id, lambda old: transitions.lost(old, time.time(), "died", config), attempt=1)
    assert claim(store) is None
    assert store.heads(time.time()) == []
    assert store.heads(time.time() + 31)[0].num_jobs == 1


def test_an_attempt_that_was_given_up_changes_nothing(store: JobStore) -> None:
    job = create(store)
    claim(store, "dead", lease_seconds=-1)
    assert store.holdings("dead")[0].attempt == 1
    config = JobsConfig(retry_first_seconds=0)
    now = time.time()
    assert (
        store.take_back(lambda old: transitions.lost(old, now, "died", config), lease_before=now, except_owner="dead")
        == []
    )
    [taken] = store.take_back(
        lambda old: transitions.lost(old, now, "died", config), lease_before=now, except_owner="me"
    )
    assert (taken.id, taken.state, taken.failures) == (job.id, JobState.QUEUED, 1)
    with pytest.raises(StaleAttempt):
        store.change(job.id, lambda old: old, attempt=1)
    claim(store)
    with pytest.raises(StaleAttempt):
        store.change(job.id, lambda old: old, attempt=1)
    store.change(job.id, lambda old: transitions.trained(old, time.time()), attempt=2)


def test_a_renewed_lease_is_not_taken_back(store: JobStore) -> None:
    create(store)
    claim(store, "me", lease_seconds=-1)
    store.renew("me", time.time() + 60)
    assert store.take_back(lambda old: old, lease_before=time.time()) == []


def test_a_trained_job_is_claimed_for_publication_only(store: JobStore) -> None:
    job = create(store)
    claim(store)
    store.change(job.id, lambda old: transitions.trained(old, time.time()), attempt=1)
    store.change(job.id, lambda old: transitions.left_worker(old, time.time()), attempt=1)
    assert claim(store) is None
    assert store.heads(time.time()) == []
    taken = store.claim_trained("me", time.time() + 60, time.time())
    assert taken is not None
    assert (taken.job.id, taken.claimed_at) == (job.id, None)
    done = store.change(
        job.id, lambda old: transitions.succeeded(old, TuningResult(published=True), time.time()), attempt=2
    )
    assert done.job.state is JobState.SUCCEEDED


def test_a_job_cancelled_while_its_publisher_was_gone_is_given_to_another_publisher(store: JobStore) -> None:
    """It may be published already, which only a publisher finds out."""
    job = create(store)
    claim(store, "one", lease_seconds=-1)
    store.change(job.id, lambda old: transitions.trained(old, time.time()), attempt=1)
    store.change(job.id, lambda old: transitions.cancel(old, time.time()))
    for expected in ([job.id], []):
        taken_back = store.take_back(
            lambda old: transitions.orphaned(old, time.time(), "gone", JobsConfig()), lease_before=time.time()
        )
        assert [one.id for one in taken_back] == expected
    taken = store.claim_trained("two", time.time() + 60, time.time())
    assert taken is not None
    assert (taken.job.id, taken.job.state, taken.job.attempt, taken.owner) == (job.id, JobState.CANCELLING, 2, "two")
    assert store.claim_trained("one", time.time() + 60, time.time()) is None
