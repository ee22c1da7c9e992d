"""Removes ended jobs: first the events in batches, so that no transaction is long, then the job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import delete, select

from trainer_service.database.database import Database
from trainer_service.database.schema import job_events, jobs

_EVENTS_BATCH = 500


@dataclass(frozen=True)
class ExpiredJob:
    """An ended job that is old enough to be removed."""

    id: str
    tenant: str
    prompt: str


def tenants_with_ended_jobs(database: Database) -> list[str]:
    """Names of the tenants that have ended jobs."""
    with database.read() as connection:
        return list(connection.scalars(select(jobs.c.tenant).where(jobs.c.end_time.is_not(None)).distinct()))


def expired_jobs(database: Database, tenant: str, before: float, limit: int = 100) -> list[ExpiredJob]:
    """Jobs of the tenant that ended before the time `before`, the oldest first."""
    query = select(jobs.c.id, jobs.c.tenant, jobs.c.prompt).where(jobs.c.tenant == tenant, jobs.c.end_time < before)
    with database.read() as connection:
        return [
            ExpiredJob(row.id, row.tenant, row.prompt)
            for row in connection.execute(query.order_by(jobs.c.end_time).limit(limit))
        ]


def remove_job(database: Database, job_id: str, pause: Callable[[], bool]) -> bool:
    """Removes an ended job and returns whether this call did so; another replica may have removed it before. `pause` is
    called between transactions; if it returns True, the rest is left for a later call.
    """
    batch = (
        select(job_events.c.number)
        .where(job_events.c.job_id == job_id)
        .order_by(job_events.c.number)
        .limit(_EVENTS_BATCH)
    )
    while True:
        with database.write() as connection:
            numbers = list(connection.scalars(batch))
            if len(numbers) < _EVENTS_BATCH:
                return bool(connection.execute(delete(jobs).where(jobs.c.id == job_id)).rowcount)
            connection.execute(
                delete(job_events).where(job_events.c.job_id == job_id, job_events.c.number <= numbers[-1])
            )
        if pause():
            return False
