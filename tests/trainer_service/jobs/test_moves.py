"""The table of legal moves, and random lives of jobs: requests, workers and crashes in any order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared.errors import PreconditionFailed
from tests.trainer_service.jobs.builders import record
from trainer_service.jobs import moves
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.model import Job, JobError, JobResult
from trainer_service.jobs.record import Record
from trainer_service.jobs.states import LEASED_STATES, LEGAL_MOVES, TERMINAL_STATES, JobState, check_move
from trainer_service.jobs.store import JobStore, StaleAttempt

CONFIG = JobsConfig(max_infrastructure_failures=3, retry_first_seconds=0)
ERROR = JobError(code="NAN_LOSS", message="the loss is not a number")


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


def test_a_checkpoint_forgives_lost_attempts() -> None:
    now = 1000.0
    made = record().with_job(state=JobState.RUNNING, failures=2)
    after = moves.progressed(made, made.job.progress, None, checkpointed=True)
    assert moves.lost(after, now, "died", CONFIG).job.failures == 1
    assert moves.lost(made.with_job(failures=3), now, "died", CONFIG).job.state is JobState.FAILED


def test_a_job_that_is_being_cancelled_is_cancelled_whatever_happens() -> None:
    cancelling = record().with_job(state=JobState.CANCELLING)
    ends: list[Callable[[Record], Record]] = [
        lambda old: moves.left_worker(old, 1.0),
        lambda old: moves.lost(old, 1.0, "died", CONFIG),
        lambda old: moves.failed(old, ERROR, 1.0),
        lambda old: moves.separated(old, 1.0),
    ]
    assert {end(cancelling).job.state for end in ends} == {JobState.CANCELLED}


class LifeOfJobs(RuleBasedStateMachine):
    """Whatever the order: events have no gap, an ended job stays as it ended, no attempt is heard after another began."""

    @initialize()
    def open(self) -> None:
        self.directory = tempfile.mkdtemp()
        self.store = JobStore.open(f"sqlite:///{self.directory}/jobs.sqlite3")
        self.now = 1000.0
        self.ids: list[str] = []
        self.ended: dict[str, Job] = {}
        self.attempts: dict[str, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.directory)

    @rule()
    def create(self) -> None:
        made = record(queued_at=self.now)
        self.ids.append(self.store.create(made, max_queued=100, max_active_of_caller=100).id)

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), request=st.sampled_from(["cancel", "pause", "resume", "delete"]))
    def ask(self, data: st.DataObject, request: str) -> None:
        job_id = data.draw(st.sampled_from(self.ids))
        before = self.store.get(job_id)
        asked: dict[str, Callable[[Record], Record]] = {
            "cancel": lambda old: moves.cancel(old, self.now),
            "pause": moves.pause,
            "resume": lambda old: moves.resume(old, self.now),
        }
        try:
            if request == "delete":
                self.store.delete(job_id)
                self.ids.remove(job_id)
                self.ended.pop(job_id, None)
            else:
                self.store.change(job_id, asked[request])
        except PreconditionFailed as refused:
            assert refused.metadata["state"] == before.state.value  # noqa: PT017 - either outcome is right, each with its own truth
            assert self.store.get(job_id) == before

    @rule()
    def claim(self) -> None:
        taken = self.store.claim("tiny", "me", self.now + 10, self.now, fresh=True)
        if taken is not None:
            assert taken.job.attempt > self.attempts.get(taken.job.id, 0)
            self.attempts[taken.job.id] = taken.job.attempt

    @rule()
    def claim_trained(self) -> None:
        taken = self.store.claim_trained("me", self.now + 10, self.now)
        if taken is not None:
            assert taken.trained
            self.attempts[taken.job.id] = taken.job.attempt

    @precondition(lambda self: self.ids)
    @rule(
        data=st.data(),
        told=st.sampled_from(["stopped", "failed", "trained", "succeeded", "lost", "oom", "outcome lost"]),
        late=st.booleans(),
    )
    def tell(self, data: st.DataObject, told: str, late: bool) -> None:
        job_id = data.draw(st.sampled_from(self.ids))
        before = self.store.get(job_id)
        attempt = max(before.attempt - late, 0)
        move: dict[str, Callable[[Record], Record]] = {
            "stopped": lambda old: moves.left_worker(old, self.now),
            "failed": lambda old: moves.failed(old, ERROR, self.now),
            "trained": lambda old: moves.trained(old, self.now),
            "succeeded": lambda old: moves.succeeded(old, JobResult(), self.now),
            "lost": lambda old: moves.lost(old, self.now, "died", CONFIG),
            "oom": lambda old: moves.separated(old, self.now),
            "outcome lost": lambda old: moves.outcome_lost(old, self.now),
        }
        current = before.state in LEASED_STATES and attempt == before.attempt
        try:
            self.store.change(job_id, move[told], attempt=attempt)
            assert current
        except StaleAttempt:
            assert not current
            assert self.store.get(job_id) == before

    @rule(seconds=st.integers(1, 20))
    def crash(self, seconds: int) -> None:
        """The process dies and comes back: leases that ran out are taken back."""
        self.now += seconds
        self.store.close()
        self.store = JobStore.open(f"sqlite:///{self.directory}/jobs.sqlite3")
        self.store.take_back(lambda old: moves.lost(old, self.now, "gone", CONFIG), lease_before=self.now)

    @invariant()
    def all_is_well(self) -> None:
        for job_id in getattr(self, "ids", []):
            job = self.store.get(job_id)
            events = self.store.events(job_id, 0)
            assert [event.number for event in events] == list(range(1, job.last_event + 1))
            states = [event.payload.state for event in events if isinstance(event.payload, Job)]
            assert states[-1] == job.state
            assert all(target in LEGAL_MOVES[source] for source, target in pairwise(states))
            assert (job.end_time is not None) == job.state.is_terminal
            if job_id in self.ended:
                assert job == self.ended[job_id]
            if job.state.is_terminal:
                self.ended[job_id] = job
            if job.state not in LEASED_STATES:
                assert self.store.record(job_id).owner == ""


TestLifeOfJobs = LifeOfJobs.TestCase
TestLifeOfJobs.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
