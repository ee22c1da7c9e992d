"""Events of jobs as rows. The caller chooses their numbers inside the transaction that changes the job."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import Connection, RowMapping, bindparam, insert, select

from trainer_service.database.bounded_read import bounded
from trainer_service.database.schema import job_events
from trainer_service.jobs.model import PAYLOADS, EventPayload, JobEvent, JobEventKind
from trainer_service.jobs.record import to_datetime
from trainer_service.jobs.stored_json import from_json, to_json

_APPEND = insert(job_events)
_AFTER = (
    select(job_events)
    .where(job_events.c.job_id == bindparam("of_job"), job_events.c.number > bindparam("after"))
    .order_by(job_events.c.number)
    .limit(bindparam("most"))
)


def append(connection: Connection, job_id: str, first: int, payloads: Sequence[EventPayload]) -> None:
    """Stores the payloads as events `first`, `first + 1`, ..."""
    now = time.time()
    rows = [
        {
            "job_id": job_id,
            "number": number,
            "time": now,
            "kind": JobEvent(number, to_datetime(now), payload).kind.value,
            "payload": to_json(payload),
        }
        for number, payload in enumerate(payloads, first)
    ]
    if rows:
        connection.execute(_APPEND, rows)


def read(connection: Connection, job_id: str, after: int, limit: int) -> tuple[list[JobEvent], bool]:
    """At most `limit` events after number `after`, fewer if they are large; and whether more follow."""
    parameters = {"of_job": job_id, "after": after, "most": limit + 1}
    rows, more = bounded(connection, _AFTER, limit, lambda row: len(row["payload"]), parameters)
    return [_event(row) for row in rows], more


def read_numbers(connection: Connection, job_id: str, numbers: Sequence[int]) -> list[JobEvent]:
    """The events with these numbers, a few hundred, in order."""
    query = select(job_events).where(job_events.c.job_id == job_id, job_events.c.number.in_(numbers))
    return [_event(row) for row in connection.execute(query.order_by(job_events.c.number)).mappings()]


def _event(row: RowMapping) -> JobEvent:
    payload = from_json(PAYLOADS[JobEventKind(row["kind"])], row["payload"])
    return JobEvent(row["number"], to_datetime(row["time"]), payload)
