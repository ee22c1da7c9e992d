"""Accepted jobs as rows: their states, numbered events and requests. Acknowledged changes survive any crash.

A change of state and its event are one transaction. Late changes of an earlier attempt raise StaleAttempt. Methods
block and are thread-safe; all raise Unavailable while the database is unavailable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Self

from sqlalchemy import Connection, RowMapping, Select, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from shared.caller import EVERY_PROMPT
from shared.errors import NotFound, PreconditionFailed
from trainer_service.database.database import STATEMENT_SECONDS, Database
from trainer_service.database.schema import job_annotations, job_datasets, jobs
from trainer_service.jobs.fair_queue import positions_before
from trainer_service.jobs.model import EventPayload, Job, JobEvent, JobFilter, JobPage
from trainer_service.jobs.record import Record, changed_columns, checked_same, from_row, to_row
from trainer_service.jobs.states import LEASED_STATES, JobState, check_move
from trainer_service.jobs.store import event_log, listing, queue_limits, tenant_shares
from trainer_service.jobs.store.conditions import UNENDED, UNSUCCESSFUL
from trainer_service.jobs.store.visibility import condition, in_states, sees_all, visible

_BY_ID = jobs.c.id == bindparam("job_id")
_STATE = select(jobs.c.state, jobs.c.last_event).where(_BY_ID)
_CHANGE = update(jobs).where(_BY_ID)
_ADD, _ADD_ANNOTATIONS, _ADD_DATASETS = insert(jobs), insert(job_annotations), insert(job_datasets)
_OF_CALLER = jobs.c.caller == bindparam("of_caller")
_OF_TENANT = (jobs.c.tenant == bindparam("of_tenant")) & (jobs.c.prompt == bindparam("of_prompt"))
_OF_REQUEST = select(jobs).where(jobs.c.request_id == bindparam("of_request")).order_by(~_OF_CALLER, jobs.c.id).limit(1)
_REQUEST, _SHARED_REQUEST = _OF_REQUEST.where(_OF_CALLER), _OF_REQUEST.where(_OF_CALLER | _OF_TENANT)
OnMove = Callable[[Connection, Record, Record], None]


class StaleAttempt(Exception):
    """The calling attempt no longer has the job and must drop it."""


class JobRecords:
    """Jobs in one database. `visible_to` are always the patterns of prompts whose jobs the caller may see."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ranks = listing.QueueRanks()
        self.on_move: list[OnMove] = []
        """All called inside each transaction that changes a job, with the job before and after."""

    @classmethod
    def open(cls, url: str, timeout_seconds: float = STATEMENT_SECONDS) -> Self:
        """Opens the store in the database at `url` (`sqlite:///FILE` or `postgresql://...`) and migrates its schema.

        `timeout_seconds` is the time limit of one statement. Raises InvalidInput, PreconditionFailed or Unavailable.
        """
        return cls(Database(url, timeout_seconds))

    @property
    def database(self) -> Database:
        """The database that holds the jobs."""
        return self._database

    @property
    def is_shared(self) -> bool:
        """Whether other trainer replicas may use the database, too."""
        return not self._database.is_sqlite

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # Requests

    def find_request(
        self,
        caller: str,
        request_id: str,
        visible_to: tuple[str, ...] = EVERY_PROMPT,
        shared: tuple[str, str] | None = None,
    ) -> Job | None:
        """The job that the caller, or for a tenant and prompt in `shared` any caller, created with this request id;
        None if there is none or the id is empty.
        """
        with self._database.read() as connection:
            return self._find_request(connection, caller, request_id, visible_to, shared)

    def create(
        self,
        record: Record,
        *,
        max_queued: int,
        max_active_of_caller: int,
        max_active_of_tenant: int | None = None,
        visible_to: tuple[str, ...] = EVERY_PROMPT,
        use_datasets: Callable[[Connection, str, Sequence[str]], None] | None = None,
        check_budgets: Callable[[Connection], None] = lambda connection: None,
        weight: float = 1.0,
        is_shared: bool = False,
    ) -> Job:
        """Stores a job as QUEUED, or returns the one that the same caller created with the same request id; with
        `is_shared`, also the one that another caller of the tenant created for the same prompt.

        `use_datasets(connection, tenant, names)` is called inside the transaction and raises NotFound for a dataset
        that no longer exists; `check_budgets(connection)` raises Overloaded if a budget of the tenant is used up.
        `weight` is the current weight of the tenant. Raises Conflict if the earlier job has another spec, Overloaded if
        the tenant's part of the queue or a limit of unended jobs is used up.
        """
        job = record.job
        shared = (job.tenant, job.spec.prompt) if is_shared else None
        try:
            with self._database.write() as connection:
                if is_shared:  # the unique index has the caller: only this lock makes others wait for this transaction
                    self._database.lock(connection, f"request {job.request_id}")
                if found := self._find_request(connection, job.caller, job.request_id, visible_to, shared):
                    return checked_same(found, job.spec, job.request_id)
                # The lock serializes the creations of one tenant, so each counts the previous ones. The whole queue may
                # exceed its limit by the concurrent creations of other tenants.
                self._database.lock(connection, job.tenant)
                tenant_shares.set_weight(connection, job.tenant, weight)
                queue_limits.check(
                    connection, job.caller, job.tenant, max_queued, max_active_of_caller, max_active_of_tenant
                )
                check_budgets(connection)
                if use_datasets is not None:
                    use_datasets(connection, job.tenant, job.spec.dataset_names)
                stored = replace(record.with_job(last_event=1), queued_at=time.time())
                connection.execute(_ADD, to_row(stored))
                if annotations := [{"key": k, "value": v, "job_id": job.id} for k, v in job.spec.annotations.items()]:
                    connection.execute(_ADD_ANNOTATIONS, annotations)
                if names := job.spec.dataset_names:
                    connection.execute(_ADD_DATASETS, [{"dataset": name, "job_id": job.id} for name in names])
                event_log.append(connection, job.id, 1, [stored.job])
                return self._with_position(connection, stored, visible_to)
        except IntegrityError:  # PostgreSQL: another replica handled the same request at the same moment
            if found := self.find_request(job.caller, job.request_id, visible_to, shared):
                return checked_same(found, job.spec, job.request_id)
            raise

    def check_limits(
        self, caller: str, tenant: str, *, max_queued: int, max_active_of_caller: int, max_active_of_tenant: int | None
    ) -> None:
        """Raises Overloaded if `create` would raise it now."""
        with self._database.read() as connection:
            queue_limits.check(connection, caller, tenant, max_queued, max_active_of_caller, max_active_of_tenant)

    def get(self, job_id: str, visible_to: tuple[str, ...] = EVERY_PROMPT) -> Job:
        """The job, with its position in the queue. Raises NotFound."""
        with self._database.read() as connection:
            return self._with_position(connection, _read(connection, job_id, visible_to), visible_to)

    def state(self, job_id: str, visible_to: tuple[str, ...] = EVERY_PROMPT) -> JobState:
        """The job's state, without reading the rest of it. Raises NotFound."""
        with self._database.read() as connection:
            return _state(connection, job_id, visible_to)

    def record(self, job_id: str) -> Record:
        """The job with its scheduling data. Raises NotFound."""
        with self._database.read() as connection:
            return _read(connection, job_id)

    def page(self, filter: JobFilter, page_size: int, after: str = "") -> JobPage:
        """The page after the job `after`, which is the `next_after` of the previous page with the same filter."""
        with self._database.read() as connection:
            return listing.page(connection, filter, page_size, after, self._ranks)

    def events(self, job_id: str, after: int, limit: int = 500) -> list[JobEvent]:
        """The events after number `after`, in order. Raises NotFound for an unknown job."""
        return self.event_page(job_id, after, limit)[0]

    def event_page(self, job_id: str, after: int, limit: int) -> tuple[list[JobEvent], bool, JobState | None]:
        """At most `limit` events after number `after`, fewer if they are large; whether more follow; and the job's
        state if there is no such event. Raises NotFound.

        Without new events it is one look-up, because watchers read far more often than a job changes.
        """
        with self._database.read() as connection:
            job = connection.execute(_STATE, {"job_id": job_id}).one_or_none()
            if job is None:
                raise NotFound("tuning job", job_id)
            if job.last_event <= after:  # one transaction writes both, so a final state has no later events
                return [], False, JobState(job.state)
            found, more = event_log.read(connection, job_id, after, limit)
            return found, more, None if found else _state(connection, job_id)

    def delete(self, job_id: str, visible_to: tuple[str, ...] = EVERY_PROMPT) -> None:
        """Removes an ended job with its events. Raises NotFound, or PreconditionFailed if the job has not ended."""
        with self._database.write() as connection:
            state = _read(connection, job_id, visible_to).job.state
            if not state.is_final:
                message = f"job {job_id!r} is {state}: only an ended job can be deleted; cancel it first"
                raise PreconditionFailed(message, job=job_id, state=state.value)
            connection.execute(delete(jobs).where(jobs.c.id == job_id))

    # Changes

    def change(
        self,
        job_id: str,
        move: Callable[[Record], Record],
        *,
        attempt: int | None = None,
        payloads: Sequence[EventPayload] = (),
        visible_to: tuple[str, ...] = EVERY_PROMPT,
    ) -> Record:
        """Applies `move` and stores `payloads` as events, and one more if the state changed, in one transaction. Raises
        StaleAttempt if `attempt` is given and no longer has the job, PreconditionFailed if the transition is not legal,
        NotFound.
        """
        with self._database.write() as connection:
            before = _read(connection, job_id, visible_to, lock=True)
            if attempt is not None and (before.job.attempt != attempt or before.job.state not in LEASED_STATES):
                raise StaleAttempt
            return self._write(connection, before, move(before), payloads)

    def counts(self, visible_to: tuple[str, ...] = EVERY_PROMPT) -> dict[JobState, int]:
        """Number of jobs by state."""
        with self._database.read() as connection:
            query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
            if not sees_all(visible_to):
                query = query.where(in_states(JobState, visible_to), visible(visible_to, connection))
            return {JobState(state): count for state, count in connection.execute(query).all()}

    def ids_on_workers(self, visible_to: tuple[str, ...]) -> frozenset[str]:
        """Ids of the jobs that a replica has."""
        with self._database.read() as connection:
            query = select(jobs.c.id).where(in_states(LEASED_STATES, visible_to), visible(visible_to, connection))
            return frozenset(connection.scalars(query))

    def ids_with_files(self) -> frozenset[str]:
        """Ids of jobs that have not ended or whose best prompt is kept."""
        kept = UNSUCCESSFUL & jobs.c.checkpointed.is_(True)
        return frozenset(self._database.scalars(select(jobs.c.id).where(UNENDED | kept)))

    # Parts

    def _write(self, connection: Connection, before: Record, after: Record, payloads: Sequence[EventPayload]) -> Record:
        stored = _store(connection, before, after, payloads)
        for hook in self.on_move:
            hook(connection, before, stored)
        return stored

    def _find_request(
        self,
        connection: Connection,
        caller: str,
        request_id: str,
        visible_to: tuple[str, ...],
        shared: tuple[str, str] | None,
    ) -> Job | None:
        if not request_id:
            return None
        query, parameters = _REQUEST, {"of_caller": caller, "of_request": request_id}
        if shared is not None:
            query, parameters = _SHARED_REQUEST, parameters | {"of_tenant": shared[0], "of_prompt": shared[1]}
        row = connection.execute(query, parameters).mappings().one_or_none()
        return self._with_position(connection, from_row(row), visible_to) if row is not None else None

    def _with_position(self, connection: Connection, record: Record, visible_to: tuple[str, ...]) -> Job:
        """The job with its position in the queue, which counts only jobs that the caller may see."""
        if record.job.state is not JobState.QUEUED:
            return record.job
        ahead, counting = _visible_queue(tuple(visible_to), connection.dialect.name)
        shares, tenant = tenant_shares.read(connection, time.time()), record.job.tenant
        counts = tenant_shares.counts_of_waiting(connection, counting)
        num_ahead = connection.scalar(ahead, {"of_tenant": tenant, "before": record.queue_key}) or 0
        position = positions_before(shares, counts, tenant, num_ahead)
        return record.job.model_copy(update={"queue_position": position})


@lru_cache(maxsize=256)
def _visible_by_id(
    visible_to: tuple[str, ...], dialect: str, *, is_whole: bool = False, lock: bool = False
) -> Select[Any]:
    """A query for the row, or only the state, of the job `job_id`, if it is visible."""
    query: Select[Any] = select(jobs) if is_whole else select(jobs.c.state)
    query = query.where(_BY_ID, condition(jobs.c.prompt, visible_to, dialect))
    return query.with_for_update() if lock else query


@lru_cache(maxsize=256)
def _visible_queue(visible_to: tuple[str, ...], dialect: str) -> tuple[Select[int], Select[str, int]]:
    """Queries for the number of visible jobs of the tenant `of_tenant` that wait with a smaller key than `before`, and
    for those of all tenants.
    """
    waiting = in_states([JobState.QUEUED], visible_to) & condition(jobs.c.prompt, visible_to, dialect)
    is_before = jobs.c.queue_key < bindparam("before")
    ahead = select(func.count()).where(waiting, jobs.c.tenant == bindparam("of_tenant"), is_before)
    return ahead, tenant_shares.counting(waiting)


def _state(connection: Connection, job_id: str, visible_to: tuple[str, ...] = EVERY_PROMPT) -> JobState:
    """Raises NotFound like `_read`."""
    query = _visible_by_id(tuple(visible_to), connection.dialect.name)
    row: RowMapping | None = connection.execute(query, {"job_id": job_id}).mappings().one_or_none()
    if row is None:
        raise NotFound("tuning job", job_id)
    return JobState(row["state"])


def _read(
    connection: Connection, job_id: str, visible_to: tuple[str, ...] = EVERY_PROMPT, *, lock: bool = False
) -> Record:
    """The record of a visible job. Raises the same NotFound for an unknown job and for an invisible one, after the same
    query.
    """
    query = _visible_by_id(tuple(visible_to), connection.dialect.name, is_whole=True, lock=lock)
    row: RowMapping | None = connection.execute(query, {"job_id": job_id}).mappings().one_or_none()
    if row is None:
        raise NotFound("tuning job", job_id)
    return from_row(row)


def _store(connection: Connection, before: Record, after: Record, payloads: Sequence[EventPayload]) -> Record:
    """Stores the changed row and its events. The event of the state comes last because it may be the job's last one."""
    moved = after.job.state is not before.job.state
    if moved:
        check_move(before.job.id, before.job.state, after.job.state)
        if after.job.state is JobState.QUEUED:
            after = replace(after, queued_at=time.time())
    first = before.job.last_event + 1
    stored = after.with_job(last_event=before.job.last_event + len(payloads) + moved)
    if stored == before:
        return before
    if columns := changed_columns(before, stored):
        connection.execute(_CHANGE, {"job_id": before.job.id, **columns})
    tenant_shares.record_move(connection, before, stored)
    event_log.append(connection, before.job.id, first, [*payloads, *([stored.job] if moved else [])])
    return stored
