"""The outbox: each delivery of an event to an endpoint is a row of the job database.

A job's events are stored in the transaction that changes the job. Those of the prompt store are copied from its log,
which is itself durable and ordered; `store_cursors` says how far. A trainer leases a delivery, so one trainer at a
time sends it. If it dies before it has stored the outcome, the lease expires and the delivery is repeated with the
same id. Methods block and are thread-safe; all raise Unavailable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import ColumnElement, Connection, delete, exists, func, select, update

from shared.values.webhooks import DeadLetter
from trainer_service.database.database import Database
from trainer_service.database.schema import store_cursors
from trainer_service.database.schema import webhook_deliveries as rows
from trainer_service.jobs.record import Record, to_datetime
from trainer_service.webhooks.endpoints import Endpoint
from trainer_service.webhooks.events import WebhookEvent, events_of_move

KEEP_SECONDS = 30 * 86_400.0
"""How long deliveries are kept: those that arrived, so that the same event is not stored twice, and dead letters."""
MAX_DEAD_LETTERS = 100
_LONGEST_WAIT_SECONDS = 86_400.0
"""Longer than every pause and lease: a time further ahead was written before a clock was set back."""
_MAX_ERROR_CHARS = 300
_CURSOR = "webhooks"


class DeliveryState(StrEnum):
    """The outcome of a delivery."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    DEAD = "DEAD"
    """Every attempt failed."""


@dataclass(frozen=True)
class Delivery:
    """One attempt to deliver an event."""

    sequence: int
    event_id: str
    body: str
    attempt: int
    """1 for the first one; it grows with each claim, so that the outcome of an earlier attempt changes nothing."""


class Outbox:
    """The deliveries of one database to the current endpoints."""

    def __init__(self, database: Database, endpoints: Callable[[], Sequence[Endpoint]]) -> None:
        self._database, self._endpoints = database, endpoints

    def job_moved(self, connection: Connection, before: Record, after: Record) -> None:
        """Stores the events of a job's change in the change's own transaction."""
        self._add(connection, events_of_move(before, after))

    def add(self, events: Iterable[WebhookEvent], cursor: tuple[str, int] | None = None) -> None:
        """Stores the events that are not stored yet, and the id and the revision of the prompt store that were read."""
        with self._database.write() as connection:
            self._add(connection, events)
            if cursor is not None:
                store_id, revision = cursor
                # Trainers read the log at their own pace; the cursor never goes back, except to another store.
                newer = (store_cursors.c.revision < revision) | (store_cursors.c.store_id != store_id)
                values = {"store_id": store_id, "revision": revision}
                self._database.put(connection, store_cursors, {"name": _CURSOR}, values, newer)

    def cursor(self, store_id: str) -> int | None:
        """The revision of this prompt store up to which events are stored; None: it was never read."""
        query = select(store_cursors.c.revision).where(
            store_cursors.c.name == _CURSOR, store_cursors.c.store_id == store_id
        )
        return self._database.scalar(query)

    def claim(self, endpoint: str, lease_seconds: float) -> Delivery | None:
        """Takes the first delivery that is due; None if there is none. It waits for earlier ones of its subject."""
        now, earlier = self._database.now(), rows.alias()
        blocked = exists().where(
            earlier.c.endpoint == endpoint,
            earlier.c.subject == rows.c.subject,
            earlier.c.state == DeliveryState.PENDING,
            earlier.c.sequence < rows.c.sequence,
        )
        due = (rows.c.endpoint == endpoint, rows.c.state == DeliveryState.PENDING, _passed(rows.c.not_before, now))
        first = (
            select(rows.c.sequence).where(*due, _passed(rows.c.lease_until, now), ~blocked).order_by(rows.c.sequence)
        )
        pick = first.limit(1).with_for_update(skip_locked=True, of=rows).scalar_subquery()
        taken = (
            update(rows)
            .where(rows.c.sequence == pick)
            .values(lease_until=now + lease_seconds, attempts=rows.c.attempts + 1)
            .returning(rows.c.sequence, rows.c.event_id, rows.c.body, rows.c.attempts)
        )
        if self._database.scalar(first.limit(1)) is None:  # takes no write lock while nothing is due
            return None
        with self._database.write() as connection:
            row = connection.execute(taken).one_or_none()
        return None if row is None else Delivery(*row)

    def delivered(self, delivery: Delivery) -> None:
        """The endpoint has accepted the delivery."""
        self._finish(delivery, state=DeliveryState.DELIVERED.value, error="")

    def failed(self, delivery: Delivery, reason: str, retry_seconds: float | None) -> None:
        """The attempt failed; it is repeated after `retry_seconds`, or never if that is None."""
        changes: dict[str, object] = {"error": reason[:_MAX_ERROR_CHARS]}
        if retry_seconds is None:
            changes["state"] = DeliveryState.DEAD.value
        else:
            changes["not_before"] = self._database.now() + retry_seconds
        self._finish(delivery, **changes)

    def release(self) -> None:
        """Ends all leases of an SQLite database, when its only trainer starts."""
        if self._database.is_sqlite:
            self._database.execute(update(rows).values(lease_until=0.0).where(rows.c.lease_until > 0))

    def retry(self, endpoint: str) -> int:
        """Repeats the endpoint's dead letters and its waiting deliveries at once. Returns their number."""
        unfinished = rows.c.state.in_([DeliveryState.PENDING, DeliveryState.DEAD])
        changes = {"state": DeliveryState.PENDING.value, "attempts": 0, "not_before": 0.0}
        is_free = _passed(rows.c.lease_until, self._database.now())
        return self._database.execute(
            update(rows).where(rows.c.endpoint == endpoint, unfinished, is_free).values(**changes)
        )

    def counts(self) -> dict[tuple[str, DeliveryState], int]:
        """The number of deliveries by endpoint and state."""
        query = select(rows.c.endpoint, rows.c.state, func.count()).group_by(rows.c.endpoint, rows.c.state)
        return {(name, DeliveryState(state)): count for name, state, count in self._database.rows(query)}

    def dead_letters(self, endpoint: str) -> tuple[DeadLetter, ...]:
        """The endpoint's newest dead letters and the failing ones that are still repeated, newest first."""
        failing = (rows.c.endpoint == endpoint, rows.c.error != "", rows.c.state != DeliveryState.DELIVERED)
        query = select(rows).where(*failing).order_by(rows.c.state, rows.c.sequence.desc()).limit(MAX_DEAD_LETTERS)
        return tuple(
            DeadLetter(
                event_id=row.event_id,
                event_type=row.type,
                subject=row.subject,
                attempts=row.attempts,
                error=row.error,
                is_dead=row.state == DeliveryState.DEAD,
                create_time=to_datetime(row.create_time),
            )
            for row in self._database.rows(query)
        )

    def remove_old(self) -> None:
        """Removes deliveries older than KEEP_SECONDS, in any state."""
        self._database.execute(delete(rows).where(rows.c.create_time < self._database.now() - KEEP_SECONDS))

    def _add(self, connection: Connection, events: Iterable[WebhookEvent]) -> None:
        for event in events:
            for endpoint in self._endpoints():
                if endpoint.wants(event):
                    statement = self._database.insert(rows).values(
                        endpoint=endpoint.name,
                        event_id=event.id,
                        type=event.type.value,
                        subject=event.subject,
                        body=event.body,
                        create_time=time.time(),
                    )
                    connection.execute(statement.on_conflict_do_nothing())

    def _finish(self, delivery: Delivery, **changes: object) -> None:
        own = (rows.c.sequence == delivery.sequence, rows.c.attempts == delivery.attempt)
        finished = update(rows).where(*own, rows.c.state == DeliveryState.PENDING)
        self._database.execute(finished.values(lease_until=0.0, **changes))


def _passed(time: ColumnElement[float], now: float) -> ColumnElement[bool]:
    return (time <= now) | (time > now + _LONGEST_WAIT_SECONDS)
