"""The statement that gives a waiting job to a replica."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, func, select, update

from trainer_service.database.schema import jobs
from trainer_service.jobs.record import Record, from_row
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store import event_log
from trainer_service.jobs.store.conditions import QUEUED


def claim_first(
    connection: Connection,
    first: Iterable[ColumnElement[bool]],
    owner: str,
    lease_until: float,
    now: float,
    *,
    claimed_at: float | None,
) -> Record | None:
    """Claims the first QUEUED job that meets the conditions, in one statement; skips jobs locked by another
    transaction.
    """
    pick = (
        select(jobs.c.id)
        .where(QUEUED, *first)
        .order_by(jobs.c.queue_key, jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    statement = (
        update(jobs)
        .where(jobs.c.id == pick)
        .values(
            state=JobState.RUNNING.value,
            owner=owner,
            lease_until=lease_until,
            claimed_at=claimed_at,
            attempt=jobs.c.attempt + 1,
            start_time=func.coalesce(jobs.c.start_time, now),
            last_event=jobs.c.last_event + 1,
        )
        .returning(*jobs.c)
    )
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        return None
    record = from_row(row)
    event_log.append(connection, record.job.id, record.job.last_event, [record.job])
    return record
