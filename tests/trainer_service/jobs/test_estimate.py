"""Guesses of when waiting jobs start, against what then happens."""

from __future__ import annotations

import asyncio
import time

from tests.trainer_service.jobs.builders import spec
from tests.trainer_service.jobs.conftest import Service
from trainer_service.jobs.estimate import Workload, starts
from trainer_service.jobs.model import JobFilter
from trainer_service.jobs.states import JobState

NOW = 1000.0


def test_with_free_places_a_job_starts_at_once_or_when_its_worker_is_there() -> None:
    assert starts(Workload(), 1, 2, 0.0, NOW) == [NOW]
    assert starts(Workload(), 1, 2, 8.0, NOW) == [NOW + 8]


def test_nothing_is_guessed_where_nothing_is_known() -> None:
    assert starts(Workload(1, [(NOW, None)]), 2, 1, 0.0, NOW) == [None, None]
    assert starts(Workload(), 3, 2, 0.0, NOW) == [NOW, NOW, None]


def test_jobs_queue_behind_those_that_run() -> None:
    load = Workload(1, [(NOW - 10, NOW + 20), (NOW, NOW + 30)], recent_seconds=[30, 30, 30])
    assert starts(load, 4, 2, 0.0, NOW) == [NOW + 20, NOW + 30, NOW + 50, NOW + 60]
    two_replicas = Workload(2, load.running, load.recent_seconds)
    assert starts(two_replicas, 3, 2, 0.0, NOW) == [NOW, NOW, NOW + 20]


def test_a_job_that_does_not_say_when_it_ends_takes_as_long_as_others_did() -> None:
    assert starts(Workload(1, [(NOW - 5, None)], [20.0]), 1, 1, 0.0, NOW) == [NOW + 15]
    assert starts(Workload(1, [(NOW - 50, None)], [20.0]), 1, 1, 0.0, NOW) == [NOW], "it is late, but not in the past"


async def test_the_guess_is_near_what_happens(service: Service) -> None:
    manager = await service.start(max_jobs_per_worker=1)
    await service.state((await manager.create(spec(num_steps=150))).id, JobState.SUCCEEDED)
    jobs = [await manager.create(spec(num_steps=150)) for _ in range(4)]
    await service.state(jobs[0].id, JobState.RUNNING)
    await asyncio.sleep(1.1)  # a guess is kept for a second
    page = await manager.list(JobFilter(states=frozenset({JobState.QUEUED})), 10)
    guessed = {job.id: job.estimated_start_time for job in page.jobs}
    assert len(guessed) >= 2
    asked_at = time.time()
    for job_id, guess in guessed.items():
        assert guess is not None
        done = await service.state(job_id, JobState.SUCCEEDED, seconds=40)
        assert done.start_time is not None
        assert done.estimated_start_time is None
        waited, expected = done.start_time.timestamp() - asked_at, guess.timestamp() - asked_at
        assert abs(waited - expected) < 0.5 * waited + 0.7, (waited, expected)
