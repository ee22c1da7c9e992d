"""Adds the estimated start to waiting jobs that are returned to callers. Its input is a snapshot of the job database:
waiting jobs, running jobs with their estimated ends, and how long jobs take.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, bindparam, select

from shared.values.results import TuningProgress
from trainer_service.database.database import Database
from trainer_service.database.schema import jobs
from trainer_service.dispatch.dispatcher import Dispatcher
from trainer_service.dispatch.estimate import (
    BusyWorker,
    Pace,
    RunningJob,
    Simulation,
    WaitingJob,
    probable_end,
    typical_seconds,
)
from trainer_service.dispatch.scheduler import WorkerView
from trainer_service.dispatch.worker_targets import worker_limits
from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.fair_queue import Shares
from trainer_service.jobs.model import Job
from trainer_service.jobs.record import to_datetime
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store import tenant_shares
from trainer_service.jobs.store.conditions import LEASED, QUEUED
from trainer_service.jobs.stored_json import from_json

_FRESH_SECONDS = 1.0
_MOST_LOAD = 0.1
"""Largest share of the time spent on estimates, however fast new jobs arrive."""
_MOST_WAITING = 2_000
"""Waiting jobs that get an estimate: the first of each tenant's queue, an equal number for all tenants."""
_FEWEST_OF_A_TENANT = 20
_RECENT_JOBS = 200
_RECENT_JOBS_OF_A_MODEL = 20

_READY = (QUEUED, jobs.c.trained.is_(False))
_WITH_READY = tenant_shares.tenants_with(*_READY)
_FIRST_OF_TENANT = (
    select(jobs.c.id, jobs.c.base_model, jobs.c.queue_key, jobs.c.not_before, jobs.c.solo, jobs.c.runtime_seconds)
    .where(*_READY, jobs.c.tenant == bindparam("of_tenant"))
    .order_by(jobs.c.queue_key, jobs.c.id)
    .limit(bindparam("most"))
)
_ON_WORKERS = select(
    *(jobs.c.id, jobs.c.owner, jobs.c.base_model, jobs.c.tenant, jobs.c.solo, jobs.c.state, jobs.c.pausing),
    *(jobs.c.claimed_at, jobs.c.runtime_seconds, jobs.c.progress),
).where(LEASED, jobs.c.claimed_at.is_not(None))
_RECENT = (
    select(jobs.c.base_model, jobs.c.runtime_seconds)
    .where(jobs.c.state == JobState.SUCCEEDED.value)
    .order_by(jobs.c.id.desc())
    .limit(_RECENT_JOBS)
)


@dataclass(frozen=True)
class QueueSnapshot:
    """The queue and the running jobs of all replicas at one moment."""

    waiting: Sequence[WaitingJob]
    running: Sequence[RunningJob]
    job_seconds: Mapping[str, float]
    """Typical time that a job spends on workers, by base model."""
    shares: Shares = field(default_factory=dict)
    """The tenants' shares, not counting the jobs on workers now."""


def read_snapshot(database: Database, now: float) -> QueueSnapshot:
    """Reads a snapshot. `now`: seconds since the epoch. Raises Unavailable."""
    with database.read() as connection:
        shares = tenant_shares.read_stored(connection)
        waiting = _waiting(connection)
        on_workers = connection.execute(_ON_WORKERS).all()
        samples = _recent_seconds(connection)
    reported: dict[str, float] = {}
    for row in on_workers:
        end = from_json(TuningProgress, row.progress).estimated_end_time
        if end is not None and end.timestamp() > row.claimed_at:
            reported[row.id] = end.timestamp()
            samples[row.base_model].append(end.timestamp() - row.claimed_at + row.runtime_seconds)
    typical = typical_seconds(samples)
    running = []
    for row in on_workers:
        leaves = row.pausing or row.state == JobState.CANCELLING.value
        since = row.claimed_at - row.runtime_seconds
        ends_at = now if leaves else probable_end(since, reported.get(row.id), typical.get(row.base_model), now)
        running.append(RunningJob(row.id, row.base_model, ends_at, row.claimed_at, row.tenant, row.solo, row.owner))
    return QueueSnapshot(waiting, running, typical, shares)


def workers_of_others(running: Sequence[RunningJob], owner: str, max_jobs_per_worker: int) -> list[list[BusyWorker]]:
    """The workers that other replicas must have, inferred from their jobs: the store knows neither which job is on
    which worker nor how many fit into a worker's memory. Returns one list per replica.
    """
    found: dict[str, list[BusyWorker]] = defaultdict(list)
    groups: dict[tuple[str, str, str], list[RunningJob]] = defaultdict(list)
    for job in running:
        if job.owner != owner:
            groups[job.owner, job.base_model, job.id if job.exclusive else ""].append(job)
    for (other, base_model, _), group in groups.items():
        for first in range(0, len(group), max_jobs_per_worker):
            on_worker = group[first : first + max_jobs_per_worker]
            found[other].append(BusyWorker(f"{other}-{len(found[other]) + 1}", base_model, on_worker))
    return list(found.values())


def _waiting(connection: Connection) -> list[WaitingJob]:
    """The first jobs of each tenant, so that a long queue of one tenant doesn't hide the others' jobs."""
    tenants = tenant_shares.with_jobs(connection, _WITH_READY)
    most = max(_FEWEST_OF_A_TENANT, _MOST_WAITING // max(1, len(tenants)))
    found: list[WaitingJob] = []
    for tenant in tenants:
        rows = connection.execute(_FIRST_OF_TENANT, {"of_tenant": tenant, "most": most})
        found += [WaitingJob(*row, tenant=tenant) for row in rows]
    return found


def _recent_seconds(connection: Connection) -> defaultdict[str, list[float]]:
    """Seconds that recently succeeded jobs spent on workers, by base model."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for base_model, seconds in connection.execute(_RECENT):
        if seconds > 0 and len(found[base_model]) < _RECENT_JOBS_OF_A_MODEL:
            found[base_model].append(seconds)
    return found


class StartTimes:
    """Caches the estimates of all waiting jobs for up to a second, so that polling a thousand jobs is cheap."""

    def __init__(self, context: JobsContext, dispatcher: Dispatcher) -> None:
        self._context, self._dispatcher = context, dispatcher
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
        dispatcher = self._dispatcher
        found = await context.database.call(read_snapshot, context.store.database, now)
        workers = [(worker.view, worker.job_ids) for worker in dispatcher.workers]
        seen = {view.base_model: view.load_seconds for view, _ in workers if view.ready}
        waited_for = {job.base_model for job in found.waiting}
        launches = {
            name: seen.get(name, dispatcher.launch_seconds(name))
            for name in waited_for | {view.base_model for view, _ in workers}
            if dispatcher.may_launch(name)
        }
        running = {job.id: job for job in found.running if job.owner == context.owner}
        mine = [
            BusyWorker(
                id=view.id,
                base_model=view.base_model,
                jobs=[
                    running.get(id) or RunningJob(id, view.base_model, now, now, exclusive=view.exclusive)
                    for id in job_ids
                ],
                ready_at=self._ready_at(view, launches.get(view.base_model), now),
                fresh=view.fresh,
                max_jobs=view.max_jobs,
                load_seconds=view.load_seconds,
            )
            for view, job_ids in workers
        ]
        self._loading_since = {view.id: self._loading_since[view.id] for view, _ in workers if not view.ready}
        simulation = Simulation(
            [job for job in found.waiting if job.base_model in launches],
            [mine, *workers_of_others(found.running, context.owner, config.max_jobs_per_worker)],
            Pace(found.job_seconds, launches),
            now,
            max_workers=config.max_workers,
            max_jobs_per_worker=config.max_jobs_per_worker,
            shares=found.shares,
            limits=worker_limits(context.models, dispatcher.may_launch, config.max_workers, waited_for),
        )
        estimated = await context.database.call(simulation.starts)
        self._starts = {job.id: estimated.get(job.id) for job in found.waiting}
        self._estimated_at = time.monotonic()
        self._took_seconds = self._estimated_at - begun

    def _ready_at(self, view: WorkerView, launch_seconds: float | None, now: float) -> float:
        """When the worker is ready; infinite if unknown, also if loading takes far longer than expected."""
        if view.ready:
            return now - view.ready_seconds
        since = self._loading_since.setdefault(view.id, now)
        if launch_seconds is None or now - since > max(1.0, 2 * launch_seconds):
            return math.inf
        return max(now, since + launch_seconds)
