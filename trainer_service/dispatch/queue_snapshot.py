"""Reads the input of start-time estimates from the job database: waiting jobs, running jobs with their estimated ends,
and how long jobs take.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from shared.values.results import TuningProgress
from trainer_service.database.database import Database
from trainer_service.database.schema import jobs
from trainer_service.dispatch.estimate import BusyWorker, WaitingJob, probable_end, typical_seconds
from trainer_service.dispatch.scheduler import WorkerView
from trainer_service.jobs.fair_queue import Shares
from trainer_service.jobs.states import LEASED_STATES, JobState
from trainer_service.jobs.store import tenant_shares
from trainer_service.jobs.store.conditions import QUEUED
from trainer_service.jobs.stored_json import from_json

_MOST_WAITING = 2_000
"""Waiting jobs that get an estimate: the first of each tenant's queue, an equal number for all tenants."""
_FEWEST_OF_A_TENANT = 20
_RECENT_JOBS = 200
_RECENT_JOBS_OF_A_MODEL = 20


@dataclass(frozen=True)
class RunningJob:
    """A job on a worker. Times are seconds since the epoch."""

    id: str
    owner: str
    """The trainer replica that has the job."""
    base_model: str
    exclusive: bool
    """Whether the job runs alone on its worker."""
    ends_at: float | None
    """Estimated end; None if unknown."""
    tenant: str = ""
    claimed_at: float = 0.0


@dataclass(frozen=True)
class QueueSnapshot:
    """The queue and the running jobs of all replicas at one moment."""

    waiting: Sequence[WaitingJob]
    running: Sequence[RunningJob]
    job_seconds: Mapping[str, float]
    """Typical time that a job spends on workers, by base model."""
    shares: Shares = field(default_factory=dict)
    """The tenants' shares, not counting the jobs on workers now."""


def read(database: Database, now: float) -> QueueSnapshot:
    """Reads a snapshot. `now`: seconds since the epoch. Raises Unavailable."""
    with database.read() as connection:
        shares = tenant_shares.read_stored(connection)
        waiting = _waiting(connection)
        columns = (jobs.c.id, jobs.c.owner, jobs.c.base_model, jobs.c.tenant, jobs.c.solo, jobs.c.state, jobs.c.pausing)
        query = select(*columns, jobs.c.claimed_at, jobs.c.runtime_seconds, jobs.c.progress)
        query = query.where(jobs.c.state.in_([state.value for state in LEASED_STATES]), jobs.c.claimed_at.is_not(None))
        on_workers = connection.execute(query).all()
        samples = _recent_seconds(connection)
    reported: dict[str, float | None] = {}
    for row in on_workers:
        end = from_json(TuningProgress, row.progress).estimated_end_time
        reported[row.id] = end.timestamp() if end is not None and end.timestamp() > row.claimed_at else None
        if (ends_at := reported[row.id]) is not None:
            samples[row.base_model].append(ends_at - row.claimed_at + row.runtime_seconds)
    typical = typical_seconds(samples)
    running = []
    for row in on_workers:
        leaves = row.pausing or row.state == JobState.CANCELLING.value
        since = row.claimed_at - row.runtime_seconds
        ends_at = now if leaves else probable_end(since, reported[row.id], typical.get(row.base_model), now)
        running.append(RunningJob(row.id, row.owner, row.base_model, row.solo, ends_at, row.tenant, row.claimed_at))
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
    for (other, base_model, alone), group in groups.items():
        for first in range(0, len(group), max_jobs_per_worker):
            on_worker = group[first : first + max_jobs_per_worker]
            id = f"{other}-{len(found[other]) + 1}"
            view = WorkerView(id, base_model, len(on_worker), ready=True, exclusive=bool(alone))
            held = [(job.tenant, job.claimed_at) for job in on_worker]
            found[other].append(BusyWorker(view, [job.ends_at for job in on_worker], held=held))
    return list(found.values())


def _waiting(connection: Connection) -> list[WaitingJob]:
    """The first jobs of each tenant, so that a long queue of one tenant doesn't hide the others' jobs."""
    columns = (
        jobs.c.id,
        jobs.c.base_model,
        jobs.c.queue_key,
        jobs.c.not_before,
        jobs.c.solo,
        jobs.c.runtime_seconds,
        jobs.c.tenant,
    )
    ready = (QUEUED, jobs.c.trained.is_(False))
    tenants = tenant_shares.with_jobs(connection, *ready)
    most = max(_FEWEST_OF_A_TENANT, _MOST_WAITING // max(1, len(tenants)))
    found: list[WaitingJob] = []
    for tenant in tenants:
        query = (
            select(*columns).where(*ready, jobs.c.tenant == tenant).order_by(jobs.c.queue_key, jobs.c.id).limit(most)
        )
        found += [WaitingJob(*row) for row in connection.execute(query)]
    return found


def _recent_seconds(connection: Connection) -> defaultdict[str, list[float]]:
    """Seconds that recently succeeded jobs spent on workers, by base model."""
    query = select(jobs.c.base_model, jobs.c.runtime_seconds).where(jobs.c.state == JobState.SUCCEEDED.value)
    found: defaultdict[str, list[float]] = defaultdict(list)
    for base_model, seconds in connection.execute(query.order_by(jobs.c.id.desc()).limit(_RECENT_JOBS)):
        if seconds > 0 and len(found[base_model]) < _RECENT_JOBS_OF_A_MODEL:
            found[base_model].append(seconds)
    return found
