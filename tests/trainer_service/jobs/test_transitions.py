"""The table of legal moves, and random lives of jobs: requests, workers and crashes in any order."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete

from shared.errors import PreconditionFailed
from shared.values.results import TuningError, TuningProgress, TuningResult
from tests.trainer_service.builders import record, spec
from tests.trainer_service.postgres import Postgres
from trainer_service.database.schema import jobs as jobs_table
from trainer_service.jobs import transitions
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.model import Job, JobEvent, Note
from trainer_service.jobs.record import Record, to_datetime
from trainer_service.jobs.states import LEASED_STATES, LEGAL_MOVES, TERMINAL_STATES, JobState, check_move
from trainer_service.jobs.store import event_log
from trainer_service.jobs.store.job_store import JobStore, StaleAttempt

CONFIG = JobsConfig(max_infrastructure_failures=3, retry_first_seconds=2, retry_max_seconds=4)
ERROR = TuningError(code="NAN_LOSS", message="the loss is not a number")
OWNERS = st.sampled_from(["one", "two"])
PROGRESS = TuningProgress(step=7, num_steps=10)
REPORTS: Mapping[str, Callable[[Record, float], Record]] = {
    "stopped": transitions.left_worker,
    "stopped with a checkpoint": transitions.left_with_checkpoint,
    "progressed": lambda old, now: transitions.progressed(old, PROGRESS, None, checkpointed=False),
    "progressed to a checkpoint": lambda old, now: transitions.progressed(old, PROGRESS, None, checkpointed=True),
    "failed": lambda old, now: transitions.failed(old, ERROR, now),
    "trained": transitions.trained,
    "succeeded": lambda old, now: transitions.succeeded(old, TuningResult(), now),
    "lost": lambda old, now: transitions.lost(old, now, "died", CONFIG),
    "oom": transitions.separated,
    "result lost": transitions.result_lost,
}
"""What workers and the publisher report of their attempt."""


def test_the_table_is_total_and_ended_is_ended() -> None:
    assert set(LEGAL_MOVES) == set(JobState)
    assert frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}) == TERMINAL_STATES
    reachable, frontier = {JobState.QUEUED}, [JobState.QUEUED]
    while frontier:
        for state in LEGAL_MOVES[frontier.pop()] - reachable:
            reachable.add(state)
            frontier.append(state)
    assert reachable == set(JobState)


@pytest.mark.parametrize("current", list(JobState))
@pytest.mark.parametrize("target", list(JobState))
def test_an_illegal_move_names_the_current_state(current: JobState, target: JobState) -> None:
    if target in LEGAL_MOVES[current]:
        check_move("job", current, target)
        return
    with pytest.raises(PreconditionFailed) as refused:
        check_move("job", current, target)
    assert refused.value.metadata["state"] == current.value


def test_a_refused_request_says_what_can_be_done() -> None:
    job = record()
    for state, request, text in (
        (JobState.RUNNING, transitions.resume, "is RUNNING and can't be resumed: you can pause or cancel it"),
        (JobState.CANCELLING, transitions.resume, "is CANCELLING and can't be resumed: it ends after its current step"),
        (JobState.FAILED, transitions.cancel, "is FAILED and can't be cancelled: it has ended; you can delete it"),
    ):
        with pytest.raises(PreconditionFailed, match=text):
            request(job.with_job(state=state), 1.0)


def test_a_checkpoint_forgives_lost_attempts() -> None:
    now = 1000.0
    made = record().with_job(state=JobState.RUNNING, failures=2)
    after = transitions.progressed(made, made.job.progress, None, checkpointed=True)
    assert transitions.lost(after, now, "died", CONFIG).job.failures == 1
    assert transitions.lost(made.with_job(failures=3), now, "died", CONFIG).job.state is JobState.FAILED


def test_a_job_that_is_being_cancelled_is_cancelled_whatever_happens() -> None:
    cancelling = record().with_job(state=JobState.CANCELLING)
    ends: list[Callable[[Record], Record]] = [
        lambda old: transitions.left_worker(old, 1.0),
        lambda old: transitions.lost(old, 1.0, "died", CONFIG),
        lambda old: transitions.failed(old, ERROR, 1.0),
        lambda old: transitions.separated(old, 1.0),
    ]
    assert {end(cancelling).job.state for end in ends} == {JobState.CANCELLED}


class DiedThere(Exception):
    """What the database sees of a process that is killed within a transaction: no commit."""


class LifeOfJobs(RuleBasedStateMachine):
    """Invariants in every order: events have no gap, an ended job doesn't change, no attempt reports after a later one
    began, no job is taken while its lease lasts, an interrupted transaction has no effect.
    """

    url = ""
    """Empty: a new SQLite file for each life."""

    @initialize()
    def open(self) -> None:
        self.directory = tempfile.mkdtemp()
        self.database_url = self.url or f"sqlite:///{self.directory}/jobs.sqlite3"
        self._open()
        with self.store.database.write() as connection:
            connection.execute(delete(jobs_table))
        self.now = 1000.0
        self.ids: list[str] = []
        self.ended: dict[str, Job] = {}
        self.attempts: dict[str, int] = {}
        for priority in (-1, 0, 1, 0, 1):
            self.create(priority, None)
        for owner in ("one", "two", "one"):
            self.claim(owner, True, 10)

    def _open(self) -> None:
        self.store = JobStore.open(self.database_url)
        # Replicas on PostgreSQL have connections of their own; on SQLite there is one process at a time, under a new
        # name each time.
        self.stores = {"one": self.store, "two": JobStore.open(self.database_url) if self.url else self.store}

    def _close(self) -> None:
        for store in set(self.stores.values()):
            store.close()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self._close()
            shutil.rmtree(self.directory)

    def _records(self) -> list[Record]:
        return [self.store.record(job_id) for job_id in self.ids]

    def _everything(self) -> list[tuple[Record, list[JobEvent]]]:
        return [(found, self.store.events(found.job.id, 0)) for found in self._records()]

    @rule(priority=st.integers(-1, 1), deadline=st.none() | st.integers(5, 40))
    def create(self, priority: int, deadline: int | None) -> None:
        asked = spec(priority=priority, deadline=None if deadline is None else to_datetime(self.now + deadline))
        made = record(asked, queued_at=self.now)
        self.ids.append(self.store.create(made, max_queued=100, max_active_of_caller=100).id)

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), request=st.sampled_from(["cancel", "pause", "resume", "delete"]), owner=OWNERS)
    def ask(self, data: st.DataObject, request: str, owner: str) -> None:
        job_id = data.draw(st.sampled_from(self.ids))
        before = self.store.get(job_id)
        asked: dict[str, Callable[[Record], Record]] = {
            "cancel": lambda old: transitions.cancel(old, self.now),
            "pause": transitions.pause,
            "resume": lambda old: transitions.resume(old, self.now),
        }
        try:
            if request == "delete":
                self.stores[owner].delete(job_id)
                self.ids.remove(job_id)
                self.ended.pop(job_id, None)
            else:
                self.stores[owner].change(job_id, asked[request])
        except PreconditionFailed as refused:
            assert refused.metadata["state"] == before.state.value  # noqa: PT017 - either outcome is right, each with its own truth
            assert self.store.get(job_id) == before

    @rule(owner=OWNERS, exclusive=st.booleans(), lease=st.integers(1, 15))
    def claim(self, owner: str, exclusive: bool, lease: int) -> None:
        """The first job that may run: by priority and age, not in its back-off, exclusive jobs separately."""
        waiting = [
            old
            for old in self._records()
            if old.job.state is JobState.QUEUED and not old.trained and old.not_before <= self.now
        ]
        fitting = sorted((old.queue_key, old.job.id) for old in waiting if old.exclusive == exclusive)
        taken = self.stores[owner].claim("tiny", owner, self.now + lease, self.now, exclusive=exclusive)
        assert (taken.job.id if taken else None) == (fitting[0][1] if fitting else None)
        if taken is not None:
            self._taken(taken, owner)

    @rule(owner=OWNERS, lease=st.integers(1, 15))
    def claim_trained(self, owner: str, lease: int) -> None:
        taken = self.stores[owner].claim_trained(owner, self.now + lease, self.now)
        if taken is not None:
            assert taken.trained
            self._taken(taken, owner)

    def _taken(self, taken: Record, owner: str) -> None:
        assert taken.owner == owner
        assert taken.job.attempt > self.attempts.get(taken.job.id, 0)
        self.attempts[taken.job.id] = taken.job.attempt

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), report=st.sampled_from(list(REPORTS)), late=st.booleans(), owner=OWNERS)
    def apply_report(self, data: st.DataObject, report: str, late: bool, owner: str) -> None:
        job_id = data.draw(st.sampled_from(self.ids))
        before = self.store.record(job_id)
        attempt = max(before.job.attempt - late, 0)
        current = before.job.state in LEASED_STATES and attempt == before.job.attempt
        try:
            after = self.stores[owner].change(
                job_id, lambda old: REPORTS[report](old, self.now), attempt=attempt, payloads=[Note(text=report)]
            )
            assert current
        except StaleAttempt:
            assert not current
            assert self.store.record(job_id) == before
            return
        if report.startswith("progressed"):
            assert (after.job.progress.step, after.job.state, after.owner) == (7, before.job.state, before.owner)
            assert after.job.failures == (0 if "checkpoint" in report else before.job.failures)

    @rule(owner=OWNERS, lease=st.integers(1, 15))
    def renew(self, owner: str, lease: int) -> None:
        before = self._records()
        self.stores[owner].renew(owner, self.now + lease)
        renewed = [replace(old, lease_until=self.now + lease) if old.owner == owner else old for old in before]
        assert self._records() == renewed

    @rule(owner=OWNERS)
    def take_back(self, owner: str) -> None:
        """Takes back jobs whose lease expired, and no others."""
        before = self._records()
        lost = {
            old.job.id
            for old in before
            if old.job.state in LEASED_STATES and old.lease_until < self.now and old.owner != owner
        }
        found = self.stores[owner].take_back(
            lambda old: transitions.orphaned(old, self.now, "gone", CONFIG), lease_before=self.now, except_owner=owner
        )
        assert {job.id for job in found} == lost
        assert [new for new in self._records() if new.job.id not in lost] == [
            old for old in before if old.job.id not in lost
        ]

    @rule(owner=OWNERS)
    def expire(self, owner: str) -> None:
        """Deadlines of waiting jobs. Paused ones, trained ones and those on workers are left alone."""
        late = {
            old.job.id
            for old in self._records()
            if old.job.state is JobState.QUEUED and transitions.past_deadline(old, self.now)
        }
        found = self.stores[owner].expire(lambda old: transitions.expired(old, self.now), self.now)
        assert {job.id for job in found} == late
        assert all(
            job.state is JobState.FAILED and job.error and job.error.code == "DEADLINE_EXCEEDED" for job in found
        )

    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(data=st.data(), where=st.sampled_from(["before a row", "after a row", "create", "take back"]), owner=OWNERS)
    def die_within_a_transaction(self, data: st.DataObject, where: str, owner: str) -> None:
        """The crash is before the job's row changes, between the row and its event, or between two jobs. The
        transaction has no effect.
        """
        before, store, calls = self._everything(), self.stores[owner], []

        def die(*_: object) -> Record:
            raise DiedThere

        def die_at_the_second(old: Record) -> Record:
            calls.append(old)
            return transitions.orphaned(old, self.now, "gone", CONFIG) if len(calls) < 2 else die()

        with pytest.MonkeyPatch.context() as patch, suppress(DiedThere, PreconditionFailed):
            if where == "take back":
                leased = [old for old, _ in before if old.job.state in LEASED_STATES]
                store.take_back(die if len(leased) < 2 else die_at_the_second, lease_before=float("inf"))
            elif where == "create":
                patch.setattr(event_log, "append", die)
                store.create(record(queued_at=self.now), max_queued=100, max_active_of_caller=100)
            elif self.ids:
                patch.setattr(event_log, "append", die)
                move = die if where == "before a row" else lambda old: transitions.cancel(old, self.now)
                store.change(data.draw(st.sampled_from(self.ids)), move, payloads=[Note(text="never stored")])
        assert self._everything() == before
        assert sum(store.counts().values()) == len(before)

    @rule(seconds=st.integers(1, 20))
    def crash(self, seconds: int) -> None:
        """The processes die and restart: expired leases are taken back; on SQLite all of them, since there is no other
        replica.
        """
        self.now += seconds
        self._close()
        self._open()
        lease_before = self.now if self.url else float("inf")
        self.store.take_back(lambda old: transitions.orphaned(old, self.now, "gone", CONFIG), lease_before=lease_before)
        assert not any(old.lease_until < lease_before for old in self._records() if old.job.state in LEASED_STATES)

    @invariant()
    def all_is_well(self) -> None:
        for found, events in self._everything() if hasattr(self, "ids") else ():
            job = found.job
            assert [event.number for event in events] == list(range(1, job.last_event + 1))
            states = [event.payload.state for event in events if isinstance(event.payload, Job)]
            assert states[-1] == job.state
            assert all(target in LEGAL_MOVES[source] for source, target in pairwise(states))
            assert (job.end_time is not None) == job.state.is_final
            if job.id in self.ended:
                assert job == self.ended[job.id]
            if job.state.is_final:
                self.ended[job.id] = job
            assert (found.owner != "") == (job.state in LEASED_STATES)
            assert found.claimed_at is None or (job.state in LEASED_STATES and not found.trained)
            assert job.attempt == self.attempts.get(job.id, 0)


TestLifeOfJobs = LifeOfJobs.TestCase
TestLifeOfJobs.settings = settings(max_examples=6, stateful_step_count=25, deadline=None)


def test_life_of_jobs_of_two_replicas_on_postgresql(postgres: Postgres) -> None:
    class OnPostgreSQL(LifeOfJobs):
        url = postgres.create_database(f"test_{uuid.uuid4().hex}")

    run_state_machine_as_test(OnPostgreSQL, settings=settings(max_examples=3, stateful_step_count=25, deadline=None))
