"""Fills in when waiting jobs will probably start, for whoever reads them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.estimate import starts
from trainer_service.jobs.model import Job
from trainer_service.jobs.record import to_datetime
from trainer_service.jobs.states import JobState

_FRESH_SECONDS = 1.0


class Launches(Protocol):
    """What the dispatcher knows of workers."""

    def launch_seconds(self, base_model: str) -> float: ...


class Outlook:
    """Guesses are at most a second old: a client that polls a thousand jobs must not have each counted anew."""

    def __init__(self, context: JobsContext, launches: Launches) -> None:
        self._context, self._launches = context, launches
        self._guessed_at = float("-inf")
        self._starts: list[float | None] = []

    async def of_one(self, job: Job) -> Job:
        return (await self.of([job]))[0]

    async def of(self, jobs: Sequence[Job]) -> tuple[Job, ...]:
        waiting = [job for job in jobs if job.state is JobState.QUEUED]
        if not waiting:
            return tuple(jobs)
        await self._guess(max(job.queue_position for job in waiting) + 1, waiting[0].effective.base_model.id)
        return tuple(self._with_start(job) for job in jobs)

    def _with_start(self, job: Job) -> Job:
        if job.state is not JobState.QUEUED or job.queue_position >= len(self._starts):
            return job
        start = self._starts[job.queue_position]
        return job if start is None else job.model_copy(update={"estimated_start_time": to_datetime(max(start, time.time()))})

    async def _guess(self, num_waiting: int, base_model: str) -> None:
        if time.monotonic() - self._guessed_at < _FRESH_SECONDS and len(self._starts) >= num_waiting:
            return
        context, config = self._context, self._context.config
        workload = await context.database.call(context.store.workload)
        places = config.max_workers * config.max_jobs_per_worker
        self._starts = starts(workload, num_waiting, places, self._launches.launch_seconds(base_model), time.time())
        self._guessed_at = time.monotonic()
