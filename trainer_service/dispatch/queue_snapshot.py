"""What a guess at starting times is made from, by the job database: who waits, who runs where and until when, how long
jobs take.
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
from trainer_service.jobs.stored_json import from_json

_MOST_WAITING = 2_000
"""The first of the queue: as many of each tenant. What comes after them is not guessed at."""
_FEWEST_OF_A_TENANT = 20
_RECENT_JOBS = 200
_RECENT_JOBS_OF_A_MODEL = 20


@dataclass(frozen=True)
class RunningJob:
    id: str
    owner: str
    base_model: str
    exclusive: bool
    ends_at: float | None
    tenant: str = ""
    claimed_at: float = 0.0


@dataclass(frozen=True)
class QueueSnapshot:
    waiting: Sequence[WaitingJob]
    running: Sequence[RunningJob]
    job_seconds: Mapping[str, float]
    """By base model."""
    shares: Shares = field(default_factory=dict)
    """Of tenants, without what their jobs hold now."""


def read(database: Database, now: float) -> QueueSnapshot:
    """Raises Unavailable."""
    with database.read() as connection:
        shares = tenant_shares.read_stored(connection)
        waiting = _waiting(connection)
        columns = (jobs.c.id, jobs.c.owner, jobs.c.base_model, jobs.c.tenant, jobs.c.solo, jobs.c.state, jobs.c.pausing)
        query = select(*columns, jobs.c.claimed_at, jobs.c.runtime_seconds, jobs.c.progress)
        query = query.where(jobs.c.state.in_([state.value for state in LEASED_STATES]), jobs.c.claimed_at.is_not(None))
        on_workers = connection.execute(query).all()
        samples = _recent_seconds(connection)
    told: dict[str, float | None] = {}
    for row in on_workers:
        end = from_json(TuningProgress, row.progress).estimated_end_time
        told[row.id] = end.timestamp() if end is not None and end.timestamp() > row.claimed_at else None
        if (ends_at := told[row.id]) is not None:
            samples[row.base_model].append(ends_at - row.claimed_at + row.runtime_seconds)
    typical = typical_seconds(samples)
    running = []
    for row in on_workers:
        leaves = row.pausing or row.state == JobState.CANCELLING.value
        since = row.claimed_at - row.runtime_seconds
        ends_at = now if leaves else probable_end(since, told[row.id], typical.get(row.base_model), now)
        running.append(RunningJob(row.id, row.owner, row.base_model, row.solo, ends_at, row.tenant, row.claimed_at))
    return QueueSnapshot(waiting, running, typical, shares)


def workers_of_others(running: Sequence[RunningJob], owner: str, max_jobs_per_worker: int) -> list[list[BusyWorker]]:
    """The workers that other replicas must have, as far as their jobs tell: not which is on which, nor what fits into
    their memory.
    """
    found: dict[str, list[BusyWorker]] = defaultdict(list)
    groups: dict[tuple[str, str, str], list[RunningJob]] = defaultdict(list)
    for job in running:
        if job.owner != owner:
            groups[job.owner, job.base_model, job.id if job.exclusive else ""].append(job)
    for (other, base_model, alone), group in groups.items():
        for first in range(0, len(group), max_jobs_per_worker):
            its = group[first : first + max_jobs_per_worker]
            view = WorkerView(
                f"{other}-{len(found[other]) + 1}", base_model, len(its), ready=True, exclusive=bool(alone)
            )
            found[other].append(
                BusyWorker(view, [job.ends_at for job in its], held=[(job.tenant, job.claimed_at) for job in its])
            )
    return list(found.values())


def _waiting(connection: Connection) -> list[WaitingJob]:
    """The first jobs of each tenant, so that none is hidden behind another one's thousands."""
    columns = (
        jobs.c.id,
        jobs.c.base_model,
        jobs.c.queue_key,
        jobs.c.not_before,
        jobs.c.solo,
        jobs.c.runtime_seconds,
        jobs.c.tenant,
    )
    ready = (jobs.c.state == JobState.QUEUED.value, jobs.c.trained.is_(False))
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
    """Time on workers of jobs that succeeded lately, by base model."""
    query = select(jobs.c.base_model, jobs.c.runtime_seconds).where(jobs.c.state == JobState.SUCCEEDED.value)
    found: defaultdict[str, list[float]] = defaultdict(list)
    for base_model, seconds in connection.execute(query.order_by(jobs.c.id.desc()).limit(_RECENT_JOBS)):
        if seconds > 0 and len(found[base_model]) < _RECENT_JOBS_OF_A_MODEL:
            found[base_model].append(seconds)
    return found
