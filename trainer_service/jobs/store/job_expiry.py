"""Removes ended jobs: first the events in batches, so that no transaction is long, then the job."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Row, delete, select

from trainer_service.database.database import Database
from trainer_service.database.schema import job_events, jobs

_EVENTS_BATCH = 500


def tenants_with_ended_jobs(database: Database) -> Sequence[str]:
    """Names of the tenants that have ended jobs."""
    return database.scalars(select(jobs.c.tenant).where(jobs.c.end_time.is_not(None)).distinct())


def expired_jobs(database: Database, tenant: str, before: float, limit: int) -> Sequence[Row[str, str]]:
    """Id and prompt of the tenant's jobs that ended before the time `before`, the oldest first."""
    query = select(jobs.c.id, jobs.c.prompt).where(jobs.c.tenant == tenant, jobs.c.end_time < before)
    return database.rows(query.order_by(jobs.c.end_time).limit(limit))


def remove_job(database: Database, job_id: str, pause: Callable[[], bool]) -> bool:
    """Removes an ended job and returns whether this call did so; another replica may have removed it before. `pause` is
    called between transactions; if it returns True, the rest is left for a later call.
    """
    number, of_job = job_events.c.number, job_events.c.job_id == job_id
    batch = select(number).where(of_job).order_by(number).limit(_EVENTS_BATCH)
    while True:
        with database.write() as connection:
            numbers = connection.scalars(batch).all()
            if len(numbers) < _EVENTS_BATCH:
                return bool(connection.execute(delete(jobs).where(jobs.c.id == job_id)).rowcount)
            connection.execute(delete(job_events).where(of_job, number <= numbers[-1]))
        if pause():
            return False
