"""Hourly sums of usage as rows. Methods block and are thread-safe; all raise Unavailable.

A segment is added exactly once: the transaction that adds it also moves the number of its journal's next segment, and
an earlier number is never added again. Any trainer may add any segment at any time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, func, select, tuple_

from shared.caller import EVERY_PROMPT, Budget
from shared.store.usage import COUNTS, HOUR_SECONDS, SegmentId, UsageRecord
from shared.values.usage import UsageDimension, UsageFilter, UsageRow
from trainer_service.database.database import Database
from trainer_service.database.schema import jobs
from trainer_service.database.schema import usage_hours as rows
from trainer_service.database.schema import usage_lives as lives
from trainer_service.jobs.record import Record, to_datetime
from trainer_service.jobs.store.conditions import UNENDED
from trainer_service.jobs.store.visibility import matching

_SUMS = (*COUNTS, "jobs", "worker_seconds", "stored_bytes")
_COLUMNS = {dimension: rows.c[dimension.value.lower()] for dimension in UsageDimension}
_BUDGETED = {"tokens": ("input_tokens", "generated_tokens")}
_LOCK = "usage"
_LIFE_SECONDS = 400 * 86_400.0
"""Time after which the number of a journal that has ended is forgotten."""


class UsageLedger:
    """The usage in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def next_numbers(self) -> Mapping[str, int]:
        """The number of the next segment to add, by journal."""
        return {row.life: row.next_number for row in self._database.rows(select(lives))}

    def fold(self, segment: SegmentId, records: Iterable[UsageRecord]) -> bool:
        """Adds the records of a segment; False if it or a later one of its journal was added before."""
        with self._database.write() as connection:
            self._database.lock(connection, _LOCK)
            known = connection.scalar(select(lives.c.next_number).where(lives.c.life == segment.life))
            if known is not None and segment.number < known:
                return False
            values = {"next_number": segment.number + 1, "update_time": self._database.now()}
            self._database.put(connection, lives, {"life": segment.life}, values)
            for record in records:
                self._add(connection, record.model_dump())
            return True

    def job_moved(self, connection: Connection, before: Record, after: Record) -> None:
        """Adds a job that has ended, in the transaction that ends it."""
        job = after.job
        if before.job.state.is_final or not job.state.is_final or job.end_time is None:
            return
        result = job.result
        version = result.version.rpartition("/")[2] if result is not None and result.published else ""
        hour = int(job.end_time.timestamp()) // HOUR_SECONDS * HOUR_SECONDS
        about = {"hour": hour, "tenant": job.tenant, "caller": job.caller, "prompt": job.spec.prompt}
        model = {"version": int(version or 0), "base_model": job.effective.base_model.id}
        used = {"jobs": 1, "worker_seconds": job.runtime_seconds, "stored_bytes": after.stored_bytes}
        self._add(connection, {**about, **model, **used})

    def list(self, filter: UsageFilter, page_size: int, after: Sequence[str | int] = ()) -> list[UsageRow]:
        """The sums by the filter's dimensions, in their order, after the row with these values."""
        columns = [_COLUMNS[dimension] for dimension in filter.by]
        with self._database.read() as connection:
            query = select(*columns, *(func.sum(rows.c[name]).label(name) for name in _SUMS))
            query = query.where(rows.c.hour >= filter.first_hour, rows.c.hour < filter.end_hour)
            if filter.tenant is not None:
                query = query.where(rows.c.tenant == filter.tenant)
            if filter.visible_to != EVERY_PROMPT:
                query = query.where(matching(rows.c.prompt, filter.visible_to, connection))
            if columns:
                query = query.group_by(*columns).order_by(*columns).limit(page_size)
                if after:
                    query = query.where(tuple_(*columns) > tuple_(*after))
            found = connection.execute(query).mappings().all()
        return [_row(row, filter.by) for row in found if row["requests"] is not None]

    def used(
        self, tenant: str, budget: Budget, first_hour: int, end_hour: int, within: Connection | None = None
    ) -> float:
        """What the tenant has used of what the budget counts. Unended jobs count in the period of their creation, and
        the seconds of those on workers as if they ended now.

        `within`: the transaction that reads; by default one of its own.
        """
        total: list[ColumnElement[Any]] = [func.sum(rows.c[name]) for name in _BUDGETED.get(budget.of, (budget.of,))]
        is_live = (jobs.c.tenant == tenant) & UNENDED
        elapsed = time.time() - jobs.c.claimed_at  # below zero after a clock was set back
        seconds = jobs.c.runtime_seconds + case((elapsed > 0, elapsed), else_=0.0)
        live = {
            "jobs": select(func.count()).where(is_live, jobs.c.create_time >= first_hour),
            "worker_seconds": select(func.sum(seconds)).where(is_live, jobs.c.claimed_at.is_not(None)),
        }
        if budget.of in live:  # in the same statement, so that a job that ends now is counted once
            total.append(live[budget.of].scalar_subquery())
        query = select(*total).where(rows.c.tenant == tenant, rows.c.hour >= first_hour, rows.c.hour < end_hour)
        with self._database.read() if within is None else nullcontext(within) as connection:
            return float(sum(number or 0 for number in connection.execute(query).one()))

    def remove_before(self, hour: int) -> int:
        """Removes older rows, and journals that ended long ago. Returns the number of rows."""
        with self._database.write() as connection:
            connection.execute(delete(lives).where(lives.c.update_time < self._database.now() - _LIFE_SECONDS))
            return connection.execute(delete(rows).where(rows.c.hour < hour)).rowcount

    def _add(self, connection: Connection, values: Mapping[str, Any]) -> None:
        statement = self._database.insert(rows).values(**{**dict.fromkeys(_SUMS, 0), **values})
        changes = {name: rows.c[name] + statement.excluded[name] for name in _SUMS}
        connection.execute(statement.on_conflict_do_update(index_elements=list(rows.primary_key), set_=changes))


def _row(row: Mapping[Any, Any], by: Sequence[UsageDimension]) -> UsageRow:
    about: dict[str, Any] = {dimension.value.lower(): row[_COLUMNS[dimension].name] for dimension in by}
    if "hour" in about:
        about["hour"] = to_datetime(about["hour"])
    sums: dict[str, Any] = {name: float(row[name]) if name == "worker_seconds" else int(row[name]) for name in _SUMS}
    return UsageRow(**about, **sums)
