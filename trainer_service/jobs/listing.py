"""Pages of jobs by filter, newest or oldest first. Job ids sort by creation, so a page token is the last id of the page before."""

from __future__ import annotations

import base64
import bisect
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, Select, select, union_all

from shared.errors import InvalidInput
from trainer_service.jobs import tenant_shares
from trainer_service.jobs.fair_queue import Shares, positions_before
from trainer_service.jobs.model import Job, JobFilter, JobOrder, JobPage
from trainer_service.jobs.record import Record, from_row
from trainer_service.jobs.schema import job_annotations, jobs
from trainer_service.jobs.states import JobState

MAX_PAGE_SIZE = 1000
_RANKS_SECONDS = 1.0


@dataclass(frozen=True)
class _Queue:
    """The queue as it was read at some time."""

    read_at: float = float("-inf")
    keys: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By tenant, in order."""
    shares: Shares = field(default_factory=dict)

    def position(self, record: Record) -> int:
        index = bisect.bisect_left(self.keys.get(record.job.tenant, []), record.queue_key)
        counts = {tenant: len(keys) for tenant, keys in self.keys.items()}
        return positions_before(self.shares, counts, record.job.tenant, index)


class QueueRanks:
    """Queue positions for whole pages, at most a second old: counting for each job anew would scan the queue a thousand times."""

    def __init__(self) -> None:
        self._latest = _Queue()

    def positions(self, connection: Connection, records: Sequence[Record]) -> list[Job]:
        if not any(record.job.state is JobState.QUEUED for record in records):
            return [record.job for record in records]
        queue = self._latest
        if time.monotonic() - queue.read_at > _RANKS_SECONDS:
            queue = self._latest = _read_queue(connection)
        return [
            record.job.model_copy(update={"queue_position": queue.position(record)}) if record.job.state is JobState.QUEUED else record.job
            for record in records
        ]


def _read_queue(connection: Connection) -> _Queue:
    query = select(jobs.c.tenant, jobs.c.queue_key).where(jobs.c.state == JobState.QUEUED.value)
    keys = defaultdict[str, list[float]](list)
    for tenant, key in connection.execute(query.order_by(jobs.c.tenant, jobs.c.queue_key)):
        keys[tenant].append(key)
    return _Queue(time.monotonic(), keys, tenant_shares.read(connection, time.time()))


def page(connection: Connection, filter: JobFilter, page_size: int, page_token: str, ranks: QueueRanks) -> JobPage:
    """At most `page_size` jobs. Raises InvalidInput for a token that was not made for this filter."""
    size = max(1, min(page_size, MAX_PAGE_SIZE))
    last = _read_token(page_token, filter)
    rows = connection.execute(_query(filter, last, size + 1)).mappings().all()
    records = [from_row(row) for row in rows[:size]]
    token = _make_token(records[-1].job.id, filter) if len(rows) > size else ""
    return JobPage(tuple(ranks.positions(connection, records)), token)


def _query(filter: JobFilter, last: str, limit: int) -> Select[tuple[object, ...]]:
    """One index range for each state, merged: a range over several states would have to be sorted as a whole."""
    ids, newest_first = select(jobs.c.id), filter.order is JobOrder.NEWEST_FIRST
    order = jobs.c.id.desc() if newest_first else jobs.c.id.asc()
    if last:
        ids = ids.where(jobs.c.id < last if newest_first else jobs.c.id > last)
    if filter.prompt:
        ids = ids.where(jobs.c.prompt == filter.prompt)
    for key, value in filter.annotations.items():
        having = select(job_annotations.c.job_id).where(job_annotations.c.key == key, job_annotations.c.value == value)
        ids = ids.where(jobs.c.id.in_(having))
    if filter.states and len(filter.states) < len(JobState):
        ranges = [
            select(ids.where(jobs.c.state == state.value).order_by(order).limit(limit).subquery().c.id) for state in sorted(filter.states)
        ]
        return select(jobs).where(jobs.c.id.in_(union_all(*ranges))).order_by(order).limit(limit)
    first = ids.order_by(order).limit(limit)
    return select(jobs).where(jobs.c.id.in_(select(first.subquery().c.id))).order_by(order)


def _make_token(last_id: str, filter: JobFilter) -> str:
    return base64.urlsafe_b64encode(f"{last_id}.{_digest(filter)}".encode()).decode()


def _read_token(token: str, filter: JobFilter) -> str:
    if not token:
        return ""
    try:
        last_id, _, digest = base64.urlsafe_b64decode(token.encode()).decode().partition(".")
    except ValueError as error:
        raise InvalidInput.of("page_token", "is not one that this service made") from error
    if digest != _digest(filter):
        raise InvalidInput.of("page_token", "belongs to another filter or order; leave it out to begin anew")
    return last_id


def _digest(filter: JobFilter) -> str:
    text = json.dumps([sorted(filter.states), filter.prompt, dict(filter.annotations), filter.order], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
