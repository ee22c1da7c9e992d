"""Adds the estimated start to waiting jobs that are returned to callers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from trainer_service.dispatch import queue_snapshot
from trainer_service.dispatch.estimate import BusyWorker, Pace, starts
from trainer_service.dispatch.scheduler import WorkerView
from trainer_service.dispatch.worker_targets import worker_limits
from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.model import Job
from trainer_service.jobs.record import to_datetime
from trainer_service.jobs.states import JobState

_FRESH_SECONDS = 1.0
_MOST_LOAD = 0.1
"""Largest share of the time spent on estimates, however fast new jobs arrive."""


class KnownWorker(Protocol):
    """A worker of this replica, as its supervisor knows it."""

    @property
    def view(self) -> WorkerView:
        """The worker as the scheduler sees it."""
        ...

    @property
    def job_ids(self) -> Collection[str]:
        """Jobs on the worker."""
        ...

    @property
    def launch_seconds(self) -> float:
        """Time from its launch until its base model was loaded; 0 before that."""
        ...


class StartTimes:
    """Caches the estimates of all waiting jobs for up to a second, so that polling a thousand jobs is cheap.

    `workers()`: the workers of this replica. `launch_seconds(base_model)`: how long its latest worker took to start, if
    it has none now. `may_launch(base_model)`: False while its workers fail to start.
    """

    def __init__(
        self,
        context: JobsContext,
        workers: Callable[[], Collection[KnownWorker]],
        launch_seconds: Callable[[str], float],
        may_launch: Callable[[str], bool],
    ) -> None:
        self._context, self._workers = context, workers
        self._launch_seconds, self._may_launch = launch_seconds, may_launch
        self._estimated_at, self._took_seconds, self._is_estimating = float("-inf"), 0.0, False
        self._starts: Mapping[str, float | None] = {}
        self._loading_since: dict[str, float] = {}
        """When each worker was first seen loading its base model."""

    async def of_one(self, job: Job) -> Job:
        """The job with its estimated start."""
        return (await self.of([job]))[0]

    async def of(self, jobs: Sequence[Job]) -> tuple[Job, ...]:
        """The jobs with the estimated starts of those that wait."""
        waiting = [job.id for job in jobs if job.state is JobState.QUEUED]
        if not waiting:
            return tuple(jobs)
        age = time.monotonic() - self._estimated_at
        is_new = not self._starts.keys() >= set(waiting)
        if not self._is_estimating and (age > _FRESH_SECONDS or (is_new and age > self._took_seconds / _MOST_LOAD)):
            self._is_estimating = True  # concurrent callers get the previous estimates
            try:
                await self._estimate()
            finally:
                self._is_estimating = False
        return tuple(self._with_start(job) for job in jobs)

    def _with_start(self, job: Job) -> Job:
        start = self._starts.get(job.id) if job.state is JobState.QUEUED else None
        if start is None:
            return job
        return job.model_copy(update={"estimated_start_time": to_datetime(max(start, time.time()))})

    async def _estimate(self) -> None:
        context, config, begun, now = self._context, self._context.config, time.monotonic(), time.time()
        found = await context.database.call(queue_snapshot.read, context.store.database, now)
        workers = [(worker.view, worker.job_ids) for worker in self._workers()]
        seen = {worker.view.base_model: worker.launch_seconds for worker in self._workers() if worker.view.ready}
        base_models = {job.base_model for job in found.waiting} | {view.base_model for view, _ in workers}
        launches = {name: seen.get(name, self._launch_seconds(name)) for name in base_models if self._may_launch(name)}
        running = {job.id: job for job in found.running if job.owner == context.owner}
        mine = [
            BusyWorker(
                view,
                [running[job_id].ends_at if job_id in running else now for job_id in job_ids],
                self._ready_at(view, launches.get(view.base_model), now),
                [
                    (running[job_id].tenant, running[job_id].claimed_at) if job_id in running else ("", now)
                    for job_id in job_ids
                ],
            )
            for view, job_ids in workers
        ]
        self._loading_since = {view.id: self._loading_since[view.id] for view, _ in workers if not view.ready}
        others = queue_snapshot.workers_of_others(found.running, context.owner, config.max_jobs_per_worker)
        estimated = await context.database.call(
            starts,
            [job for job in found.waiting if job.base_model in launches],
            [mine, *others],
            Pace(found.job_seconds, launches),
            now,
            max_workers=config.max_workers,
            max_jobs_per_worker=config.max_jobs_per_worker,
            shares=found.shares,
            limits=worker_limits(
                context.models, self._may_launch, config.max_workers, {job.base_model for job in found.waiting}
            ),
        )
        self._starts = {job.id: estimated.get(job.id) for job in found.waiting}
        self._estimated_at = time.monotonic()
        self._took_seconds = self._estimated_at - begun

    def _ready_at(self, view: WorkerView, launch_seconds: float | None, now: float) -> float | None:
        """When the worker is ready; None if unknown, also if loading takes far longer than expected."""
        if view.ready:
            return now
        since = self._loading_since.setdefault(view.id, now)
        if launch_seconds is None or now - since > max(1.0, 2 * launch_seconds):
            return None
        return max(now, since + launch_seconds)
