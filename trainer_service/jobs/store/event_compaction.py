"""Thins the events of a job that has ended to what its curve needs: a day of training leaves tens of thousands.

What stays: every change of state, every note, the last checkpoint, the best evaluation, and at most MAX_CURVE_EVENTS
points of progress and evaluations, spread evenly from the first to the last. Numbers stay as they were, so a watch that
resumes after one goes on with the next one that is left, and ends with the job's last event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sqlalchemy import delete, func, select, update

from trainer_service.database.database import Database
from trainer_service.database.schema import job_events, jobs
from trainer_service.jobs.model import JobEventKind

MAX_CURVE_EVENTS = 500
COMPACT_AFTER_SECONDS = 600.0
"""After the job's end: those who watch it now see every event."""

_THINNED = (JobEventKind.PROGRESS, JobEventKind.EVALUATION, JobEventKind.CHECKPOINT)
_BATCH = 500


def jobs_to_compact(database: Database, limit: int = 100) -> list[str]:
    """Those that ended first come first."""
    ended = jobs.c.end_time < time.time() - COMPACT_AFTER_SECONDS
    query = select(jobs.c.id).where(jobs.c.compacted.is_(False), ended).order_by(jobs.c.end_time).limit(limit)
    with database.read() as connection:
        return list(connection.scalars(query))


def compact(database: Database, job_id: str, pause: Callable[[], bool]) -> int:
    """How many events were removed, in transactions of a few hundred. `pause` is called between them; True ends this,
    to be done later.
    """
    surplus = _surplus(database, job_id)
    for start in range(0, len(surplus), _BATCH):
        with database.write() as connection:
            numbers = surplus[start : start + _BATCH]
            connection.execute(
                delete(job_events).where(job_events.c.job_id == job_id, job_events.c.number.in_(numbers))
            )
        if pause():
            return start + len(numbers)
    with database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(compacted=True))
    return len(surplus)


def _surplus(database: Database, job_id: str) -> list[int]:
    of_job = job_events.c.job_id == job_id
    query = select(job_events.c.number, job_events.c.kind).where(
        of_job, job_events.c.kind.in_([kind.value for kind in _THINNED])
    )
    is_best = (job_events.c.kind == JobEventKind.EVALUATION.value) & job_events.c.payload.contains(
        '"is_best":true', autoescape=True
    )
    numbers: dict[str, list[int]] = {kind.value: [] for kind in _THINNED}
    with database.read() as connection:
        for number, kind in connection.execute(query.order_by(job_events.c.number)):
            numbers[kind].append(number)
        best = connection.scalar(select(func.max(job_events.c.number)).where(of_job, is_best))
    progress, evaluations, checkpoints = (numbers[kind.value] for kind in _THINNED)
    kept = {*checkpoints[-1:], *thinned(evaluations, MAX_CURVE_EVENTS // 2 - 1)} | (
        {best} if best is not None else set()
    )
    kept |= set(thinned(progress, MAX_CURVE_EVENTS - len(kept & {*evaluations})))
    return sorted({*progress, *evaluations, *checkpoints} - kept)


def thinned(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` (2 or more) of them, evenly spread, with the first and the last."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(index * (len(numbers) - 1) / (most - 1))] for index in range(most)]
