"""Estimated starts of waiting jobs: for given workers and jobs, and compared with the actual starts."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.trainer_service.builders import BASE_MODEL, spec
from tests.trainer_service.job_service import Service
from tests.trainer_service.scripted import ScriptedTrainer
from trainer_service.dispatch.estimate import (
    BusyWorker,
    Pace,
    RunningJob,
    Simulation,
    WaitingJob,
    probable_end,
    typical_seconds,
)
from trainer_service.dispatch.start_times import workers_of_others
from trainer_service.jobs.admission import SpecAdmission
from trainer_service.jobs.model import EffectiveSpec, Job, JobFilter, StoredSpec
from trainer_service.jobs.states import JobState
from trainer_service.training.events import StepDone, TrainingEvent, TrainingTask

NOW, UNKNOWN = 1000.0, math.inf
PACE = Pace(job_seconds={"a": 100.0, "b": 30.0}, launch_seconds={"a": 10.0, "b": 5.0})


def queue(*base_models: str, **changes: Any) -> list[WaitingJob]:
    """Jobs `0`, `1` and so on, oldest first."""
    return [WaitingJob(str(index), base_model, float(index), **changes) for index, base_model in enumerate(base_models)]


def worker(base_model: str, *ends: float, ready_at: float = NOW, exclusive: bool = False, **facts: Any) -> BusyWorker:
    jobs = [RunningJob(str(number), base_model, end, NOW, exclusive=exclusive) for number, end in enumerate(ends)]
    return BusyWorker(f"w-{base_model}-{ends}", base_model, jobs, ready_at, **facts)


def guess(
    waiting: Sequence[WaitingJob],
    *workers: BusyWorker,
    others: Sequence[Sequence[BusyWorker]] = (),
    pace: Pace = PACE,
    **limits: int,
) -> dict[str, float]:
    """Seconds from now, by job."""
    asked: dict[str, Any] = {"max_workers": 1, "max_jobs_per_worker": 2, **limits}
    return {
        job: start - NOW for job, start in Simulation(waiting, [workers, *others], pace, NOW, **asked).starts().items()
    }


def test_where_nothing_runs_a_job_waits_for_its_worker_to_be_launched() -> None:
    assert guess(queue("a")) == {"0": 10}
    assert guess(queue("a"), worker("a")) == {"0": 0}
    assert guess(queue("a"), worker("a", ready_at=NOW + 4)) == {"0": 4}


def test_the_same_model_is_busy() -> None:
    """Two places: one is free now, later ones become free when running jobs and the jobs started meanwhile end."""
    assert guess(queue("a", "a", "a"), worker("a", NOW + 40)) == {"0": 0, "1": 40, "2": 100}
    assert guess(queue("a"), worker("a", NOW + 40, NOW + 20)) == {"0": 20}


def test_another_model_has_the_only_worker() -> None:
    """All jobs of the worker end before it is replaced; jobs that wait for its model wait behind that."""
    assert guess(queue("b"), worker("a", NOW + 3600)) == {"0": 3605}
    assert guess(queue("b"), worker("a", NOW + 20, NOW + 3600)) == {"0": 3605}
    assert guess(queue("b", "a"), worker("a", NOW + 20, NOW + 50)) == {"0": 55, "1": 55 + 30 + 10}
    assert guess(queue("b"), worker("a", NOW + 3600), max_workers=2) == {"0": 5}


def test_an_idle_worker_of_another_model_is_replaced_at_once() -> None:
    assert guess(queue("b"), worker("a")) == {"0": 5}


def test_a_worker_holds_as_many_jobs_as_its_memory() -> None:
    assert guess(queue("a", "a"), worker("a", NOW + 40, max_jobs=1), max_jobs_per_worker=8) == {"0": 40, "1": 140}
    assert guess(queue("a", "a"), worker("a", NOW + 40, max_jobs=3), max_jobs_per_worker=8) == {"0": 0, "1": 0}


def test_a_job_that_must_be_alone_gets_a_fresh_worker_and_keeps_others_out() -> None:
    alone = queue("a", exclusive=True)
    assert guess(alone, worker("a", NOW + 40)) == {"0": 50}
    behind = [*alone, WaitingJob("1", "a", 1.0)]
    assert guess(behind, worker("a", ready_at=NOW, fresh=True)) == {"0": 0, "1": 100}
    assert guess(queue("a"), worker("a", NOW + 70, exclusive=True)) == {"0": 70}


def test_a_job_waits_for_its_back_off_and_those_behind_it_do_not() -> None:
    waiting = [WaitingJob("late", "a", 0.0, not_before=NOW + 60), WaitingJob("next", "a", 1.0)]
    assert guess(waiting, worker("a"), max_jobs_per_worker=1) == {"next": 0, "late": 100}
    assert guess(waiting[:1], worker("a")) == {"late": 60}


def test_nothing_is_guessed_where_nothing_is_known() -> None:
    nothing = Pace(launch_seconds={"a": 10.0})
    assert guess(queue("a", "a"), worker("a", UNKNOWN, UNKNOWN)) == {}
    assert guess(queue("a", "a"), worker("a"), pace=nothing, max_jobs_per_worker=1) == {"0": 0}, (
        "the duration of the first is unknown"
    )
    assert guess(queue("b"), worker("a", UNKNOWN)) == {}
    assert guess(queue("a"), worker("a", ready_at=UNKNOWN)) == {}
    assert guess(queue("c"), pace=nothing) == {}


def test_what_a_job_has_done_before_is_not_done_again() -> None:
    waiting = [WaitingJob("0", "a", 0.0, done_seconds=80.0), WaitingJob("1", "a", 1.0)]
    assert guess(waiting, worker("a"), max_jobs_per_worker=1) == {"0": 0, "1": 20}


def test_other_replicas_take_jobs_too() -> None:
    running = [RunningJob("x", "a", NOW + 15, NOW, owner="other"), RunningJob("y", "a", NOW + 40, NOW, owner="me")]
    others = workers_of_others(running, "me", 2)
    assert [[[job.ends_at for job in found.jobs] for found in replica] for replica in others] == [[[NOW + 15]]]
    assert guess(queue("a", "a"), worker("a", NOW + 40), others=others, max_jobs_per_worker=1) == {"0": 15, "1": 40}


def test_the_workers_of_another_replica_as_its_jobs_tell() -> None:
    running = [
        RunningJob(str(number), "a", NOW + number, NOW, exclusive=number == 3, owner="other") for number in range(4)
    ]
    [found] = workers_of_others([*running, RunningJob("b", "b", UNKNOWN, NOW, owner="other")], "me", 2)
    ends = [(seen.base_model, [job.ends_at for job in seen.jobs], seen.view(NOW).exclusive) for seen in found]
    assert ends == [
        ("a", [NOW, NOW + 1], False),
        ("a", [NOW + 2], False),
        ("a", [NOW + 3], True),
        ("b", [UNKNOWN], False),
    ]


def test_a_long_queue_is_guessed_at_quickly() -> None:
    waiting = queue(*["a", "b"] * 1000)
    begun = time.process_time()
    found = guess(
        waiting,
        *[worker("a", *[NOW + 10.0 * number + place for place in range(8)]) for number in range(4)],
        max_workers=4,
    )
    assert len(found) > 500
    assert time.process_time() - begun < 5.0  # of this process alone, which takes 0.2 s


def test_when_a_job_on_a_worker_ends() -> None:
    assert probable_end(NOW - 10, NOW + 20, 100.0, NOW) == NOW + 20
    assert probable_end(NOW - 10, NOW - 1, 100.0, NOW) == NOW, "it is late, but not in the past"
    assert probable_end(NOW - 10, NOW - 50, 100.0, NOW) == NOW + 90, "an earlier attempt reported that"
    assert probable_end(NOW - 10, None, None, NOW) == UNKNOWN
    assert typical_seconds({"a": [1, 2, 300], "b": []}) == {"a": 2}


class AdmitForEither(SpecAdmission):
    """A prompt's name says which of the two base models it is for."""

    def __init__(self, admission: Any) -> None:
        self._admission = admission

    async def check(self, spec: StoredSpec, unstored: object = None) -> EffectiveSpec:
        found: EffectiveSpec = await self._admission.check(spec)
        return found.model_copy(update={"base_model": replace(BASE_MODEL, id=spec.prompt[0])})

    async def check_form(self, spec: StoredSpec) -> None:
        """Accepts every spec."""


class PacedTrainer(ScriptedTrainer):
    """Reports the true duration of its steps, like a cohort, however busy the machine is."""

    def __init__(self) -> None:
        super().__init__(step_seconds=0.01)
        self._stepped_at = time.monotonic()

    def add(self, task: TrainingTask) -> None:
        if self.is_idle:
            self._stepped_at = time.monotonic()
        super().add(task)

    def step(self) -> Sequence[TrainingEvent]:
        before, events = self._stepped_at, super().step()
        self._stepped_at = time.monotonic()
        took = self._stepped_at - before
        return [
            dataclasses.replace(event, step_seconds=took) if isinstance(event, StepDone) else event for event in events
        ]


async def test_the_guess_is_near_what_happens(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker with two places. A long and a short job of model a run; b's wait for both to end, and then an a for
    both b's.
    """
    monkeypatch.setattr(service, "_load", lambda base_model: (PacedTrainer(), {}))
    manager = await service.start(max_workers=1, max_jobs_per_worker=2)
    manager._admission = AdmitForEither(manager._admission)

    async def create(name: str, num_steps: int) -> Job:
        return await manager.create(spec(num_steps=num_steps, prompt=name))

    for name in ("a-before", "b-before"):  # from these it is known how long jobs take
        await service.state((await create(name, 50)).id, JobState.SUCCEEDED)
    for job in [await create("a-long", 180), await create("a-short", 30)]:
        await service.until(job.id, lambda job: job.progress.step > 5)
    jobs = [await create("b-one", 50), await create("a-next", 50), await create("b-two", 50)]
    manager._start_times._estimated_at = float("-inf")
    page = await manager.list(JobFilter(states=frozenset({JobState.QUEUED})), 10)
    asked_at = time.time()
    guessed = {job.id: job.estimated_start_time for job in page.jobs}
    seconds = {}
    for job in jobs:
        done = await service.state(job.id, JobState.SUCCEEDED)
        guess = guessed[job.id]
        assert guess is not None
        assert done.start_time is not None
        assert done.estimated_start_time is None
        seconds[job.spec.prompt] = done.start_time.timestamp() - asked_at, guess.timestamp() - asked_at
    assert all(waited > 0.3 for waited, _ in seconds.values()), f"they really waited: {seconds}"
    # The tests above compare numbers. Other processes of the machine make steps several times slower, now and then.
    assert all(waited / 5 < expected < 5 * waited for waited, expected in seconds.values()), seconds
    assert seconds["a-next"][1] > seconds["b-one"][1] == seconds["b-two"][1]
