"""The job store: every accepted job, its state, its numbered events. What it has acknowledged survives any crash.

Each change of state is one transaction together with the event that tells it. A job on a worker belongs to one trainer
replica, by a lease, and to one attempt, by a number that grows with each claim: what comes late from an earlier attempt
is refused (StaleAttempt). Methods block and are thread-safe; all raise Unavailable when the database is away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from shared.caller import EVERY_PROMPT
from shared.errors import Conflict, NotFound, Overloaded, PreconditionFailed
from trainer_service.database.database import STATEMENT_SECONDS, Database
from trainer_service.database.schema import job_annotations, job_datasets, jobs
from trainer_service.jobs.fair_queue import QueueHead, fair_part, in_order, positions_before, queue_clock, share_of
from trainer_service.jobs.model import EventPayload, Job, JobEvent, JobFilter, JobPage
from trainer_service.jobs.record import IMMUTABLE_COLUMNS, Record, from_row, same_request, to_row
from trainer_service.jobs.states import LEASED_STATES, UNSUCCESSFUL_STATES, JobState, check_move
from trainer_service.jobs.store import event_log, listing, tenant_shares, worker_slots
from trainer_service.jobs.store.visibility import in_states, sees_all, visible

_LEASED = [state.value for state in LEASED_STATES]
_UNENDED = [state.value for state in JobState if not state.is_final]
"""What has ended is most of a store that is old: a range of an index for each other state never looks at it."""
_UNSUCCESSFUL = [state.value for state in UNSUCCESSFUL_STATES]
_QUEUED = jobs.c.state == JobState.QUEUED.value
_CLAIMS = "claims of waiting jobs"
"""Name of the lock that puts claims one after the other, so that each sees what the one before has charged."""


class StaleAttempt(Exception):
    """The attempt that speaks is not the one that has the job now: it must let go of it."""


@dataclass(frozen=True)
class Holding:
    """A job that this replica has, and what was asked of it meanwhile, possibly through another replica."""

    job_id: str
    attempt: int
    state: JobState
    pausing: bool


class JobStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._ranks = listing.QueueRanks()

    @classmethod
    def open(cls, url: str, timeout_seconds: float = STATEMENT_SECONDS) -> JobStore:
        """`sqlite:///FILE` or `postgresql://...`; migrates the schema. Raises InvalidInput, PreconditionFailed or
        Unavailable.

        `timeout_seconds` is the time limit of one statement.
        """
        return cls(Database(url, timeout_seconds))

    @property
    def database(self) -> Database:
        return self._database

    @property
    def is_shared(self) -> bool:
        """Other trainer replicas may change jobs too."""
        return not self._database.is_sqlite

    def close(self) -> None:
        self._database.close()

    # Requests

    def find_request(self, caller: str, request_id: str, visible_to: tuple[str, ...] = EVERY_PROMPT) -> Job | None:
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
        """Store a job as QUEUED, or return the one that the same caller made with the same request id. `weight`: of its
        tenant, as of now.

        `use_datasets(connection, tenant, names)` is called inside the transaction; it raises NotFound for a dataset
        that is gone by now. Raises Conflict if that one's spec differs, Overloaded if the tenant's part of the queue or
        a limit of unended jobs is used up.
        """
        job = record.job
        try:
            with self._database.write() as connection:
                if found := self._find_request(connection, job.caller, job.request_id, visible_to):
                    return _same(found, job)
                # Creations of one tenant, one after the other: each counts those before it. The queue as a whole may
                # overshoot by those under way.
                self._database.lock(connection, job.tenant)
                tenant_shares.set_weight(connection, job.tenant, weight)
                self._check_room(connection, job, max_queued)
                self._check_active(connection, jobs.c.caller == job.caller, "your", max_active_of_caller)
                if max_active_of_tenant is not None:
                    self._check_active(connection, jobs.c.tenant == job.tenant, "your tenant's", max_active_of_tenant)
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
        except IntegrityError:  # PostgreSQL: another replica was given the same request at the same moment
            if found := self.find_request(job.caller, job.request_id, visible_to):
                return _same(found, job)
            raise

    def get(self, job_id: str, visible_to: tuple[str, ...] = EVERY_PROMPT) -> Job:
        with self._database.read() as connection:
            return self._with_position(connection, _read(connection, job_id, visible_to), visible_to)

    def check_visible(self, job_id: str, visible_to: tuple[str, ...]) -> None:
        """Raises NotFound."""
        with self._database.read() as connection:
            _read(connection, job_id, visible_to)

    def record(self, job_id: str) -> Record:
        with self._database.read() as connection:
            return _read(connection, job_id)

    def page(self, filter: JobFilter, page_size: int, after: str = "") -> JobPage:
        """Beginning after the job `after`, the `next_after` of the page before with the same filter."""
        with self._database.read() as connection:
            return listing.page(connection, filter, page_size, after, self._ranks)

    def events(self, job_id: str, after: int, limit: int = 500) -> list[JobEvent]:
        """In order of their numbers. Raises NotFound for an unknown job."""
        return self.event_page(job_id, after, limit)[0]

    def event_page(self, job_id: str, after: int, limit: int) -> tuple[list[JobEvent], bool]:
        """`events`, fewer than `limit` where they are large; and whether more follow."""
        with self._database.read() as connection:
            found, more = event_log.read(connection, job_id, after, limit)
            if not found:
                _read(connection, job_id)
            return found, more

    def delete(self, job_id: str, visible_to: tuple[str, ...] = EVERY_PROMPT) -> None:
        """Raises PreconditionFailed if the job has not ended."""
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
        """Apply `move`, with the given events and one more if the state changed, in one transaction.

        With `attempt`: raises StaleAttempt unless that attempt has the job. Raises PreconditionFailed for a move that
        is not legal.
        """
        with self._database.write() as connection:
            before = _read(connection, job_id, visible_to, lock=True)
            if attempt is not None and (before.job.attempt != attempt or before.job.state not in LEASED_STATES):
                raise StaleAttempt
            return _write(connection, before, move(before), payloads)

    # Queue and leases

    def heads(self, now: float) -> list[QueueHead]:
        """What may run now, by base model and tenant."""
        group = (jobs.c.base_model, jobs.c.tenant, jobs.c.solo)
        ready = (_QUEUED, jobs.c.trained.is_(False), jobs.c.not_before <= now)
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
        """Ids of the jobs that wait for a worker with this base model, the first ones."""
        mine = (jobs.c.state == JobState.QUEUED.value) & (jobs.c.base_model == base_model) & jobs.c.trained.is_(False)
        with self._database.read() as connection:
            return list(connection.scalars(select(jobs.c.id).where(mine).order_by(jobs.c.queue_key).limit(limit)))

    def claim(
        self, base_model: str, owner: str, lease_until: float, now: float, *, exclusive: bool = False
    ) -> Record | None:
        """A job for this base model becomes RUNNING and this replica's: the first of the tenant that goes next
        (`fair_queue`).

        `exclusive`: one that needs a fresh worker of its own; otherwise one that doesn't.
        """
        first = (
            jobs.c.base_model == base_model,
            jobs.c.trained.is_(False),
            jobs.c.solo.is_(exclusive),
            jobs.c.not_before <= now,
        )
        with self._database.write() as connection:
            self._database.lock(connection, _CLAIMS)
            tenants = tenant_shares.with_jobs(connection, _QUEUED, *first)
            if not tenants:
                return None
            shares, waiting = tenant_shares.read(connection, now), tenant_shares.with_jobs(connection, _QUEUED)
            for tenant in in_order(shares, tenants):
                claimed = self._claim(
                    connection, (*first, jobs.c.tenant == tenant), owner, lease_until, now, claimed_at=now
                )
                if claimed is not None:
                    tenant_shares.record_claim(connection, shares, tenant, waiting)
                    return replace(claimed, weight=share_of(shares, tenant).weight)
        return None

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Weights of tenants, from now on. Those that have had no job yet get theirs with the first one."""
        with self._database.write() as connection:
            tenant_shares.set_known_weights(connection, weights)

    def claim_trained(self, owner: str, lease_until: float, now: float) -> Record | None:
        """The same for a job that only has to be published. There is seldom one, so it is looked for before anything is
        locked.
        """
        waiting = select(jobs.c.id).where(jobs.c.state == JobState.QUEUED.value, jobs.c.trained.is_(True)).limit(1)
        with self._database.read() as connection:
            if connection.execute(waiting).first() is None:
                return None
        first = (jobs.c.trained.is_(True), jobs.c.not_before <= now)
        with self._database.write() as connection:
            return self._claim(connection, first, owner, lease_until, now, claimed_at=None)

    def now(self) -> float:
        """The time that leases are measured by, the same for all replicas however wrong their own clocks are."""
        return self._database.now()

    def hold(self, job_id: str, attempt: int, owner: str, lease_until: float) -> JobState:
        """Renew the lease of one attempt, also one that has run out, if nobody took the job. Raises StaleAttempt if
        somebody did.
        """
        mine = (jobs.c.id == job_id) & (jobs.c.attempt == attempt) & (jobs.c.owner == owner) & jobs.c.state.in_(_LEASED)
        with self._database.write() as connection:
            state = connection.scalar(update(jobs).where(mine).values(lease_until=lease_until).returning(jobs.c.state))
        if state is None:
            raise StaleAttempt
        return JobState(state)

    def renew(self, owner: str, lease_until: float) -> None:
        """All leases of a replica: of its jobs, and of its part of the workers."""
        with self._database.write() as connection:
            connection.execute(
                update(jobs).where(jobs.c.state.in_(_LEASED), jobs.c.owner == owner).values(lease_until=lease_until)
            )
            worker_slots.renew(connection, owner, lease_until)

    def holdings(self, owner: str) -> list[Holding]:
        query = select(jobs.c.id, jobs.c.attempt, jobs.c.state, jobs.c.pausing).where(
            jobs.c.state.in_(_LEASED), jobs.c.owner == owner
        )
        with self._database.read() as connection:
            return [Holding(row.id, row.attempt, JobState(row.state), row.pausing) for row in connection.execute(query)]

    def take_back(self, move: Callable[[Record], Record], *, lease_before: float, except_owner: str = "") -> list[Job]:
        """Apply `move` to every job whose lease ended before that time: its replica is gone, and has no part of the
        workers any more. `float("inf")`: to every one.
        """
        query = select(jobs).where(
            jobs.c.state.in_(_LEASED), jobs.c.lease_until < lease_before, jobs.c.owner != except_owner
        )
        query = query.order_by(
            jobs.c.tenant
        )  # shares are charged in one order, whoever takes jobs back at the same time
        with self._database.write() as connection:
            rows = connection.execute(query.with_for_update(skip_locked=True)).mappings().all()
            taken = [_write(connection, before, move(before), ()).job for before in map(from_row, rows)]
            # Not while it has a job: one that was claimed later has a later lease, and with it a worker that takes a
            # slot.
            still_has_jobs = select(jobs.c.owner).where(jobs.c.state.in_(_LEASED))
            worker_slots.remove_expired(connection, lease_before, except_owner, still_has_jobs)
            return taken

    def expire(self, move: Callable[[Record], Record], now: float) -> list[Job]:
        """Apply `move` to every waiting job whose deadline has passed."""
        query = select(jobs).where(
            jobs.c.state == JobState.QUEUED.value, jobs.c.deadline <= now, jobs.c.trained.is_(False)
        )
        with self._database.read() as connection:
            if connection.execute(query.with_only_columns(jobs.c.id).limit(1)).first() is None:
                return []
        with self._database.write() as connection:
            rows = connection.execute(query.with_for_update(skip_locked=True)).mappings().all()
            return [_write(connection, before, move(before), ()).job for before in map(from_row, rows)]

    def fail_waiting(self, base_model: str, move: Callable[[Record], Record], most: int) -> list[Job]:
        """Apply `move` to at most so many of a base model's waiting jobs; to none while another replica has jobs of it
        on workers.
        """
        on_workers = select(jobs.c.id).where(
            jobs.c.state.in_(_LEASED), jobs.c.base_model == base_model, jobs.c.claimed_at.is_not(None)
        )
        waiting = select(jobs).where(_QUEUED, jobs.c.trained.is_(False), jobs.c.base_model == base_model).limit(most)
        with self._database.write() as connection:
            if connection.execute(on_workers.limit(1)).first() is not None:
                return []
            rows = connection.execute(waiting.with_for_update(skip_locked=True)).mappings().all()
            return [_write(connection, before, move(before), ()).job for before in map(from_row, rows)]

    def counts(self, visible_to: tuple[str, ...] = EVERY_PROMPT) -> dict[JobState, int]:
        with self._database.read() as connection:
            query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
            if not sees_all(visible_to):
                query = query.where(in_states(JobState, visible_to), visible(visible_to, connection))
            return {JobState(state): count for state, count in connection.execute(query).all()}

    def ids_on_workers(self, visible_to: tuple[str, ...]) -> frozenset[str]:
        with self._database.read() as connection:
            query = select(jobs.c.id).where(in_states(LEASED_STATES, visible_to), visible(visible_to, connection))
            return frozenset(connection.scalars(query))

    def oldest_queued_seconds(self, now: float) -> Mapping[str, float]:
        """By base model: how long the oldest job that waits for a worker has been QUEUED. Only base models that have
        such a job.
        """
        waiting = (jobs.c.state == JobState.QUEUED.value) & jobs.c.trained.is_(False)
        query = select(jobs.c.base_model, func.min(jobs.c.queued_at)).where(waiting).group_by(jobs.c.base_model)
        with self._database.read() as connection:
            return {name: max(0.0, now - queued_at) for name, queued_at in connection.execute(query)}

    def ids_with_files(self) -> frozenset[str]:
        """Jobs that have not ended, and those whose best prompt is kept."""
        kept = jobs.c.state.in_(_UNSUCCESSFUL) & jobs.c.checkpointed.is_(True)
        with self._database.read() as connection:
            return frozenset(connection.scalars(select(jobs.c.id).where(jobs.c.state.in_(_UNENDED) | kept)))

    # Parts

    def _claim(
        self,
        connection: Connection,
        first: Iterable[ColumnElement[bool]],
        owner: str,
        lease_until: float,
        now: float,
        *,
        claimed_at: float | None,
    ) -> Record | None:
        """The first QUEUED job that the conditions allow, in one statement. One that another transaction has locked is
        passed over.
        """
        pick = (
            select(jobs.c.id)
            .where(_QUEUED, *first)
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

    def _find_request(
        self, connection: Connection, caller: str, request_id: str, visible_to: tuple[str, ...]
    ) -> Job | None:
        if not request_id:
            return None
        query = select(jobs).where(jobs.c.caller == caller, jobs.c.request_id == request_id)
        row = connection.execute(query).mappings().one_or_none()
        return self._with_position(connection, from_row(row), visible_to) if row is not None else None

    def _check_room(self, connection: Connection, job: Job, max_queued: int) -> None:
        """A full queue refuses a tenant that has its fair part of it or more: those who have less are not locked out by
        the others.
        """
        queued = connection.scalar(select(func.count()).where(_QUEUED)) or 0
        if queued < max_queued:
            return
        counts, shares = tenant_shares.counts_of_waiting(connection), tenant_shares.read_stored(connection)
        others = [share_of(shares, tenant).weight for tenant in counts if tenant != job.tenant]
        part, own = fair_part(max_queued, share_of(shares, job.tenant).weight, others), counts.get(job.tenant, 0)
        if own >= part:
            # The part itself would show how many others there are.
            message = f"the queue is full: at most {max_queued} jobs may wait, and {own} of your tenant's do, its fair part or more"
            raise Overloaded(message, retry_after_seconds=30.0, queued=own)

    @staticmethod
    def _check_active(connection: Connection, mine: ColumnElement[bool], whose: str, most: int) -> None:
        active = connection.scalar(select(func.count()).where(mine, jobs.c.state.in_(_UNENDED))) or 0
        if active >= most:
            message = f"{active} of {whose} jobs have not ended, and the limit (active_jobs) is {most}: wait for one to end, or cancel one"
            raise Overloaded(message, retry_after_seconds=60.0, active=active)

    def _with_position(self, connection: Connection, record: Record, visible_to: tuple[str, ...]) -> Job:
        """The position counts the jobs that the caller may see."""
        if record.job.state is not JobState.QUEUED:
            return record.job
        waiting, tenant = in_states([JobState.QUEUED], visible_to) & visible(visible_to, connection), record.job.tenant
        ahead = select(func.count()).where(waiting, jobs.c.tenant == tenant, jobs.c.queue_key < record.queue_key)
        shares, counts = (
            tenant_shares.read(connection, time.time()),
            tenant_shares.counts_of_waiting(connection, waiting),
        )
        position = positions_before(shares, counts, tenant, connection.scalar(ahead) or 0)
        return record.job.model_copy(update={"queue_position": position})


def _read(
    connection: Connection, job_id: str, visible_to: tuple[str, ...] = EVERY_PROMPT, *, lock: bool = False
) -> Record:
    """Raises NotFound, the same for a job that does not exist and for one that is not visible: one look-up finds
    neither.
    """
    query = select(jobs).where(jobs.c.id == job_id, visible(visible_to, connection))
    row: RowMapping | None = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    if row is None:
        raise NotFound("tuning job", job_id)
    return from_row(row)


def _write(connection: Connection, before: Record, after: Record, payloads: Sequence[EventPayload]) -> Record:
    """The row as it is after the move, and its events; the state's event last, since it may be the one that ends the
    job.
    """
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
