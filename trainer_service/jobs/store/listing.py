"""Pages of jobs by filter, newest or oldest first. Job ids sort by creation, so a page begins after the last id of the
previous one.
"""

from __future__ import annotations

import bisect
import time
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, RowMapping, Select, exists, false, select, union_all

from shared.caller import matches
from trainer_service.database.bounded_read import bounded
from trainer_service.database.schema import job_annotations, jobs
from trainer_service.jobs.fair_queue import Shares, positions_before
from trainer_service.jobs.model import Job, JobFilter, JobOrder, JobPage
from trainer_service.jobs.record import Record, from_row
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store import tenant_shares
from trainer_service.jobs.store.visibility import in_states, sees_all, visible
from trainer_service.pages import MAX_PAGE_SIZE

_RANKS_SECONDS = 1.0
_MAX_RANKINGS = 64


@dataclass(frozen=True)
class _Queue:
    """The queue as it was read at some time."""

    read_at: float = float("-inf")
    keys: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Sorted queue keys by tenant."""
    shares: Shares = field(default_factory=dict)

    def position(self, record: Record) -> int:
        index = bisect.bisect_left(self.keys.get(record.job.tenant, []), record.queue_key)
        counts = {tenant: len(keys) for tenant, keys in self.keys.items()}
        return positions_before(self.shares, counts, record.job.tenant, index)


class QueueRanks:
    """Queue positions for whole pages, at most a second old. Counting for each job would scan the queue many times."""

    def __init__(self) -> None:
        self._queues: OrderedDict[tuple[str, ...], _Queue] = OrderedDict()
        """The visible part of the queue, by the caller's prompt patterns."""

    def positions(self, connection: Connection, records: Sequence[Record], visible_to: tuple[str, ...]) -> list[Job]:
        """The records' jobs; waiting ones get the number of visible jobs ahead of them."""
        if not any(record.job.state is JobState.QUEUED for record in records):
            return [record.job for record in records]
        queue = self._queue(connection, visible_to)
        return [
            record.job.model_copy(update={"queue_position": queue.position(record)})
            if record.job.state is JobState.QUEUED
            else record.job
            for record in records
        ]

    def _queue(self, connection: Connection, visible_to: tuple[str, ...]) -> _Queue:
        queue = self._queues.get(visible_to)
        if queue is None or time.monotonic() - queue.read_at > _RANKS_SECONDS:
            queue = self._queues[visible_to] = _read_queue(connection, visible_to)
            if len(self._queues) > _MAX_RANKINGS:
                self._queues.popitem(last=False)
        return queue


def _read_queue(connection: Connection, visible_to: tuple[str, ...]) -> _Queue:
    waiting = in_states([JobState.QUEUED], visible_to) & visible(visible_to, connection)
    query = select(jobs.c.tenant, jobs.c.queue_key).where(waiting)
    keys = defaultdict[str, list[float]](list)
    for tenant, key in connection.execute(query.order_by(jobs.c.tenant, jobs.c.queue_key)):
        keys[tenant].append(key)
    return _Queue(time.monotonic(), keys, tenant_shares.read(connection, time.time()))


def page(connection: Connection, filter: JobFilter, page_size: int, after: str, ranks: QueueRanks) -> JobPage:
    """At most `page_size` jobs, fewer if they are large, after the job `after` (empty: from the first job)."""
    size = max(1, min(page_size, MAX_PAGE_SIZE))
    rows, more = bounded(connection, _query(connection, filter, after, size + 1), size, _size_of)
    records = [from_row(row) for row in rows]
    next_after = records[-1].job.id if more else ""
    return JobPage(tuple(ranks.positions(connection, records, filter.visible_to)), next_after)


def _size_of(row: RowMapping) -> int:
    return sum(len(row[column] or "") for column in ("spec", "effective", "result", "progress", "error"))


def _query(connection: Connection, filter: JobFilter, last: str, limit: int) -> Select[tuple[object, ...]]:
    """Merges one index range per state, because the result of one range over several states would have to be sorted.

    For a caller who may see only some prompts, it reads and sorts the jobs of these prompts in all states, so that the
    query's time doesn't depend on other jobs.
    """
    ids, newest_first = select(jobs.c.id), filter.order is not JobOrder.OLDEST_FIRST
    order = jobs.c.id.desc() if newest_first else jobs.c.id.asc()
    if last:
        ids = ids.where(jobs.c.id < last if newest_first else jobs.c.id > last)
    if filter.prompt:
        ids = ids.where(jobs.c.prompt == filter.prompt if matches(filter.visible_to, filter.prompt) else false())
    else:
        ids = ids.where(visible(filter.visible_to, connection))
    is_limited = not sees_all(filter.visible_to)
    for key, value in filter.annotations.items():
        wanted = (job_annotations.c.key == key) & (job_annotations.c.value == value)
        if is_limited:
            ids = ids.where(exists().where(wanted, job_annotations.c.job_id == jobs.c.id))
        else:
            ids = ids.where(jobs.c.id.in_(select(job_annotations.c.job_id).where(wanted)))
    if filter.states and len(filter.states) < len(JobState):
        if not is_limited:
            ranges = [
                select(ids.where(jobs.c.state == state.value).order_by(order).limit(limit).subquery().c.id)
                for state in sorted(filter.states)
            ]
            return select(jobs).where(jobs.c.id.in_(union_all(*ranges))).order_by(order).limit(limit)
        ids = ids.where(in_states(filter.states, filter.visible_to))
    first = ids.order_by(order).limit(limit)
    return select(jobs).where(jobs.c.id.in_(select(first.subquery().c.id))).order_by(order)
