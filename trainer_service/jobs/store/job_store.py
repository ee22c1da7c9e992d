"""The job store: all accepted jobs, their states and numbered events. Acknowledged changes survive any crash.

A change of state and its event are one transaction. A job on a worker belongs to one trainer replica, by a lease, and
to one attempt, by a number that grows with each claim; late changes of an earlier attempt raise StaleAttempt. Methods
block and are thread-safe; all raise Unavailable while the database is unavailable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from shared.caller import EVERY_PROMPT
from shared.errors import Conflict, NotFound, PreconditionFailed
from trainer_service.database.database import STATEMENT_SECONDS, Database
from trainer_service.database.schema import job_annotations, job_datasets, jobs
from trainer_service.jobs.fair_queue import QueueHead, in_order, positions_before, queue_clock, share_of
from trainer_service.jobs.model import EventPayload, Job, JobEvent, JobFilter, JobPage
from trainer_service.jobs.record import IMMUTABLE_COLUMNS, Record, from_row, same_request, to_row
from trainer_service.jobs.states import LEASED_STATES, UNSUCCESSFUL_STATES, JobState, check_move
from trainer_service.jobs.store import event_log, listing, queue_limits, tenant_shares, worker_slots
from trainer_service.jobs.store.claiming import claim_first
from trainer_service.jobs.store.conditions import QUEUED, UNENDED
from trainer_service.jobs.store.visibility import in_states, sees_all, visible

_LEASED = [state.value for state in LEASED_STATES]
_UNSUCCESSFUL = [state.value for state in UNSUCCESSFUL_STATES]
_CLAIMS = "claims of waiting jobs"
"""Name of the lock that serializes claims, so that each claim sees the charges of the previous one."""


OnMove = Callable[[Connection, Record, Record], None]


class StaleAttempt(Exception):
    """The calling attempt no longer has the job and must drop it."""


@dataclass(frozen=True)
class Holding:
    """A job that a replica has, with the requests made for it meanwhile, possibly through another replica."""

    job_id: str
    attempt: int
    state: JobState
    pausing: bool


class JobStore:
    """Jobs in one database. `visible_to` are always the patterns of prompts whose jobs the caller may see."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ranks = listing.QueueRanks()
        self.on_move: OnMove | None = None
        """Called inside each transaction that changes a job, with the job before and after."""

    @classmethod
    def open(cls, url: str, timeout_seconds: float = STATEMENT_SECONDS) -> JobStore:
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

    def find_request(self, caller: str, request_id: str, visible_to: tuple[str, ...] = EVERY_PROMPT) -> Job | None:
        """The job that the caller created with this request id; None if there is none or the id is empty."""
        with self._database.read() as connection:
            return self._find_request(connection, caller, request_id, visible_to)

    def create(
        self,
        record: Record,
        *,
        max_queued: int,
        max_active_of_caller: int,
        max_active_of_tenant: int | None = None,
        visible_to: tuple[str, ...] = EVERY_PROMPT,
        use_datasets: Callable[[Connection, str, Sequence[str]], None] | None = None,
        weight: float = 1.0,
    ) -> Job:
        """Stores a job as QUEUED, or returns the one that the same caller created with the same request id.

        `use_datasets(connection, tenant, names)` is called inside the transaction and raises NotFound for a dataset
        that no longer exists. `weight` is the current weight of the tenant. Raises Conflict if the earlier job has
        another spec, Overloaded if the tenant's part of the queue or a limit of unended jobs is used up.
        """
        job = record.job
        try:
            with self._database.write() as connection:
                if found := self._find_request(connection, job.caller, job.request_id, visible_to):
                    return _same(found, job)
                # The lock serializes the creations of one tenant, so each counts the previous ones. The whole queue may
                # exceed its limit by the concurrent creations of other tenants.
                self._database.lock(connection, job.tenant)
                tenant_shares.set_weight(connection, job.tenant, weight)
                queue_limits.check(
                    connection, job.caller, job.tenant, max_queued, max_active_of_caller, max_active_of_tenant
                )
                if use_datasets is not None:
                    use_datasets(connection, job.tenant, job.spec.dataset_names)
                stored = replace(record.with_job(last_event=1), queued_at=time.time())
                connection.execute(insert(jobs).values(**to_row(stored)))
                if annotations := [{"key": k, "value": v, "job_id": job.id} for k, v in job.spec.annotations.items()]:
                    connection.execute(insert(job_annotations), annotations)
                if names := job.spec.dataset_names:
                    connection.execute(insert(job_datasets), [{"dataset": name, "job_id": job.id} for name in names])
                event_log.append(connection, job.id, 1, [stored.job])
                return self._with_position(connection, stored, visible_to)
        except IntegrityError:  # PostgreSQL: another replica handled the same request at the same moment
            if found := self.find_request(job.caller, job.request_id, visible_to):
                return _same(found, job)
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

    def check_visible(self, job_id: str, visible_to: tuple[str, ...]) -> None:
        """Raises NotFound if the job doesn't exist or the caller may not see it."""
        with self._database.read() as connection:
            _read(connection, job_id, visible_to)

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

    def event_page(self, job_id: str, after: int, limit: int) -> tuple[list[JobEvent], bool]:
        """At most `limit` events after number `after`, fewer if they are large; and whether more follow."""
        with self._database.read() as connection:
            found, more = event_log.read(connection, job_id, after, limit)
            if not found:
                _read(connection, job_id)
            return found, more

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
        """Applies `move` and stores `payloads` as events, and one more if the state changed, in one transaction.

        Raises StaleAttempt if `attempt` is given and no longer has the job, PreconditionFailed if the transition is not
        legal, NotFound.
        """
        with self._database.write() as connection:
            before = _read(connection, job_id, visible_to, lock=True)
            if attempt is not None and (before.job.attempt != attempt or before.job.state not in LEASED_STATES):
                raise StaleAttempt
            return self._write(connection, before, move(before), payloads)

    # Queue and leases

    def heads(self, now: float) -> list[QueueHead]:
        """The jobs that may run now, grouped by base model, tenant and `exclusive`."""
        group = (jobs.c.base_model, jobs.c.tenant, jobs.c.solo)
        ready = (QUEUED, jobs.c.trained.is_(False), jobs.c.not_before <= now)
        query = (
            select(*group, func.min(jobs.c.queue_key), func.avg(jobs.c.queue_key), func.count())
            .where(*ready)
            .group_by(*group)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
            shares = tenant_shares.read(connection, now) if rows else {}
        clock = queue_clock(shares)
        found = []
        for base_model, tenant, exclusive, first_key, mean_key, count in rows:
            share = share_of(shares, tenant)
            start = max(clock, share.time)
            found.append(
                QueueHead(
                    base_model,
                    first_key,
                    count,
                    count if exclusive else 0,
                    tenant,
                    share.weight,
                    start,
                    float(mean_key),
                )
            )
        return found

    def waiting(self, base_model: str, limit: int) -> list[str]:
        """Ids of the first jobs that wait for a worker with this base model."""
        waiting = QUEUED & (jobs.c.base_model == base_model) & jobs.c.trained.is_(False)
        with self._database.read() as connection:
            return list(connection.scalars(select(jobs.c.id).where(waiting).order_by(jobs.c.queue_key).limit(limit)))

    def claim(
        self, base_model: str, owner: str, lease_until: float, now: float, *, exclusive: bool = False
    ) -> Record | None:
        """Makes a waiting job for this base model RUNNING and gives it to this replica: the first job of the tenant
        whose turn it is (`fair_queue`). Returns None if no such job waits.

        `exclusive`: whether to claim a job that needs a fresh worker for itself, or one that doesn't.
        """
        first = (
            jobs.c.base_model == base_model,
            jobs.c.trained.is_(False),
            jobs.c.solo.is_(exclusive),
            jobs.c.not_before <= now,
        )
        with self._database.write() as connection:
            self._database.lock(connection, _CLAIMS)
            tenants = tenant_shares.with_jobs(connection, QUEUED, *first)
            if not tenants:
                return None
            shares, waiting = tenant_shares.read(connection, now), tenant_shares.with_jobs(connection, QUEUED)
            for tenant in in_order(shares, tenants):
                claimed = claim_first(
                    connection, (*first, jobs.c.tenant == tenant), owner, lease_until, now, claimed_at=now
                )
                if claimed is not None:
                    tenant_shares.record_claim(connection, shares, tenant, waiting)
                    return replace(claimed, weight=share_of(shares, tenant).weight)
        return None

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Sets the weights of tenants that have had jobs; other tenants get their weight with their first job."""
        with self._database.write() as connection:
            tenant_shares.set_known_weights(connection, weights)

    def claim_trained(self, owner: str, lease_until: float, now: float) -> Record | None:
        """Claims a job that only has to be published. These are rare, so it looks for one before it locks anything."""
        waiting = select(jobs.c.id).where(QUEUED, jobs.c.trained.is_(True)).limit(1)
        with self._database.read() as connection:
            if connection.execute(waiting).first() is None:
                return None
        first = (jobs.c.trained.is_(True), jobs.c.not_before <= now)
        with self._database.write() as connection:
            return claim_first(connection, first, owner, lease_until, now, claimed_at=None)

    def now(self) -> float:
        """The database's time, which measures leases. It is the same for all replicas, whatever their clocks say."""
        return self._database.now()

    def hold(self, job_id: str, attempt: int, owner: str, lease_until: float) -> JobState:
        """Renews the lease of one attempt, also an expired one, and returns the job's state. Raises StaleAttempt if the
        job was taken over.
        """
        held = (jobs.c.id == job_id) & (jobs.c.attempt == attempt) & (jobs.c.owner == owner) & jobs.c.state.in_(_LEASED)
        with self._database.write() as connection:
            state = connection.scalar(update(jobs).where(held).values(lease_until=lease_until).returning(jobs.c.state))
        if state is None:
            raise StaleAttempt
        return JobState(state)

    def renew(self, owner: str, lease_until: float) -> None:
        """Renews all leases of a replica: of its jobs and of its worker slots."""
        with self._database.write() as connection:
            connection.execute(
                update(jobs).where(jobs.c.state.in_(_LEASED), jobs.c.owner == owner).values(lease_until=lease_until)
            )
            worker_slots.renew(connection, owner, lease_until)

    def holdings(self, owner: str) -> list[Holding]:
        """The jobs that a replica has."""
        query = select(jobs.c.id, jobs.c.attempt, jobs.c.state, jobs.c.pausing).where(
            jobs.c.state.in_(_LEASED), jobs.c.owner == owner
        )
        with self._database.read() as connection:
            return [Holding(row.id, row.attempt, JobState(row.state), row.pausing) for row in connection.execute(query)]

    def take_back(self, move: Callable[[Record], Record], *, lease_before: float, except_owner: str = "") -> list[Job]:
        """Applies `move` to every job whose lease ended before `lease_before` (`float("inf")`: to every leased job),
        and frees the worker slots of those replicas. Returns the changed jobs.
        """
        query = select(jobs).where(
            jobs.c.state.in_(_LEASED), jobs.c.lease_until < lease_before, jobs.c.owner != except_owner
        )
        query = query.order_by(jobs.c.tenant)  # all replicas charge shares in the same order, which avoids deadlocks
        with self._database.write() as connection:
            rows = connection.execute(query.with_for_update(skip_locked=True)).mappings().all()
            taken = [self._write(connection, before, move(before), ()).job for before in map(from_row, rows)]
            # A replica that still has a job keeps its slots: a job claimed later has a later lease, and its worker
            # takes a slot.
            still_has_jobs = select(jobs.c.owner).where(jobs.c.state.in_(_LEASED))
            worker_slots.remove_expired(connection, lease_before, except_owner, still_has_jobs)
            return taken

    def expire(self, move: Callable[[Record], Record], now: float) -> list[Job]:
        """Applies `move` to every waiting job whose deadline has passed, and returns these jobs."""
        query = select(jobs).where(QUEUED, jobs.c.deadline <= now, jobs.c.trained.is_(False))
        with self._database.read() as connection:
            if connection.execute(query.with_only_columns(jobs.c.id).limit(1)).first() is None:
                return []
        with self._database.write() as connection:
            rows = connection.execute(query.with_for_update(skip_locked=True)).mappings().all()
            return [self._write(connection, before, move(before), ()).job for before in map(from_row, rows)]

    def fail_waiting(self, base_model: str, move: Callable[[Record], Record], most: int) -> list[Job]:
        """Applies `move` to at most `most` jobs that wait for a base model, but to none while jobs of it are on
        workers. Returns the changed jobs.
        """
        on_workers = select(jobs.c.id).where(
            jobs.c.state.in_(_LEASED), jobs.c.base_model == base_model, jobs.c.claimed_at.is_not(None)
        )
        waiting = select(jobs).where(QUEUED, jobs.c.trained.is_(False), jobs.c.base_model == base_model).limit(most)
        with self._database.write() as connection:
            if connection.execute(on_workers.limit(1)).first() is not None:
                return []
            rows = connection.execute(waiting.with_for_update(skip_locked=True)).mappings().all()
            return [self._write(connection, before, move(before), ()).job for before in map(from_row, rows)]

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

    def oldest_queued_seconds(self, now: float) -> Mapping[str, float]:
        """How long the oldest job that waits for a worker has been QUEUED, by base model with such a job."""
        waiting = (QUEUED) & jobs.c.trained.is_(False)
        query = select(jobs.c.base_model, func.min(jobs.c.queued_at)).where(waiting).group_by(jobs.c.base_model)
        with self._database.read() as connection:
            return {name: max(0.0, now - queued_at) for name, queued_at in connection.execute(query)}

    def ids_with_files(self) -> frozenset[str]:
        """Ids of jobs that have not ended or whose best prompt is kept."""
        kept = jobs.c.state.in_(_UNSUCCESSFUL) & jobs.c.checkpointed.is_(True)
        with self._database.read() as connection:
            return frozenset(connection.scalars(select(jobs.c.id).where(jobs.c.state.in_(UNENDED) | kept)))

    # Parts

    def _write(self, connection: Connection, before: Record, after: Record, payloads: Sequence[EventPayload]) -> Record:
        stored = _store(connection, before, after, payloads)
        if self.on_move is not None:
            self.on_move(connection, before, stored)
        return stored

    def _find_request(
        self, connection: Connection, caller: str, request_id: str, visible_to: tuple[str, ...]
    ) -> Job | None:
        if not request_id:
            return None
        query = select(jobs).where(jobs.c.caller == caller, jobs.c.request_id == request_id)
        row = connection.execute(query).mappings().one_or_none()
        return self._with_position(connection, from_row(row), visible_to) if row is not None else None

    def _with_position(self, connection: Connection, record: Record, visible_to: tuple[str, ...]) -> Job:
        """The job with its position in the queue, which counts only jobs that the caller may see."""
        if record.job.state is not JobState.QUEUED:
            return record.job
        waiting, tenant = in_states([JobState.QUEUED], visible_to) & visible(visible_to, connection), record.job.tenant
        ahead = select(func.count()).where(waiting, jobs.c.tenant == tenant, jobs.c.queue_key < record.queue_key)
        shares = tenant_shares.read(connection, time.time())
        counts = tenant_shares.counts_of_waiting(connection, waiting)
        position = positions_before(shares, counts, tenant, connection.scalar(ahead) or 0)
        return record.job.model_copy(update={"queue_position": position})


def _read(
    connection: Connection, job_id: str, visible_to: tuple[str, ...] = EVERY_PROMPT, *, lock: bool = False
) -> Record:
    """The record of a visible job. Raises the same NotFound for an unknown job and for an invisible one, after the same
    query.
    """
    query = select(jobs).where(jobs.c.id == job_id, visible(visible_to, connection))
    row: RowMapping | None = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
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
    changed = {key: value for key, value in to_row(stored).items() if key not in IMMUTABLE_COLUMNS}
    connection.execute(update(jobs).where(jobs.c.id == before.job.id).values(**changed))
    tenant_shares.record_move(connection, before, stored)
    event_log.append(connection, before.job.id, first, [*payloads, *([stored.job] if moved else [])])
    return stored


def _same(found: Job, asked: Job) -> Job:
    if not same_request(found.spec, asked.spec):
        message = f"request_id {asked.request_id!r} was used before, for job {found.id!r} with another spec"
        raise Conflict(message, current=found.name)
    return found
