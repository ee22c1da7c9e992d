"""Thins the events of an ended job to those that its curves need: a day of training leaves tens of thousands.

It keeps every change of state, every note, the last checkpoint, the best evaluation, and at most MAX_CURVE_EVENTS
progress events and evaluations, spread evenly from the first to the last. Event numbers don't change, so a watch can
resume after any number: it continues with the next remaining event and ends with the job's last one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sqlalchemy import ColumnElement, delete, func, select, update

from trainer_service.database.database import Database
from trainer_service.database.schema import job_events, jobs
from trainer_service.jobs.model import JobEventKind

MAX_CURVE_EVENTS = 500
COMPACT_AFTER_SECONDS = 600.0
"""Time after the job's end before its events are thinned, so that current watchers see all of them."""

_THINNED = (JobEventKind.PROGRESS, JobEventKind.EVALUATION, JobEventKind.CHECKPOINT)
_BATCH = 500


def jobs_to_compact(database: Database, limit: int) -> Sequence[str]:
    """Ids of ended jobs whose events were not thinned yet, those that ended first at the front."""
    ended = jobs.c.end_time < time.time() - COMPACT_AFTER_SECONDS
    query = select(jobs.c.id).where(jobs.c.compacted.is_(False), ended).order_by(jobs.c.end_time)
    return database.scalars(query.limit(limit))


def compact(database: Database, job_id: str, pause: Callable[[], bool]) -> int:
    """Thins a job's events in transactions of a few hundred and returns how many it removed. `pause` is called between
    transactions; if it returns True, the rest is left for a later call.
    """
    surplus = _surplus(database, job_id)
    for start in range(0, len(surplus), _BATCH):
        numbers = surplus[start : start + _BATCH]
        database.execute(delete(job_events).where(job_events.c.job_id == job_id, job_events.c.number.in_(numbers)))
        if pause():
            return start + len(numbers)
    database.execute(update(jobs).where(jobs.c.id == job_id).values(compacted=True))
    return len(surplus)


def _surplus(database: Database, job_id: str) -> list[int]:
    of_job = job_events.c.job_id == job_id
    query = select(job_events.c.number, job_events.c.kind).where(
        of_job, job_events.c.kind.in_([kind.value for kind in _THINNED])
    )
    numbers: dict[str, list[int]] = {kind.value: [] for kind in _THINNED}
    with database.read() as connection:
        for number, kind in connection.execute(query.order_by(job_events.c.number)):
            numbers[kind].append(number)
        best = connection.scalar(select(func.max(job_events.c.number)).where(of_job, is_best()))
    progress, evaluations, checkpoints = (numbers[kind.value] for kind in _THINNED)
    kept = {*checkpoints[-1:], *thinned(evaluations, MAX_CURVE_EVENTS // 2 - 1), best} - {None}
    kept |= set(thinned(progress, MAX_CURVE_EVENTS - len(kept & {*evaluations})))
    return sorted({*progress, *evaluations, *checkpoints} - kept)


def is_best() -> ColumnElement[bool]:
    """A condition: an event is an evaluation that was the best so far."""
    return (job_events.c.kind == JobEventKind.EVALUATION.value) & job_events.c.payload.contains(
        '"is_best":true', autoescape=True
    )


def thinned(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` (2 or more) of the numbers, evenly spread, including the first and the last."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(index * (len(numbers) - 1) / (most - 1))] for index in range(most)]
