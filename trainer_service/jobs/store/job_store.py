"""The job store: all accepted jobs, the queue of those that wait, and the leases of those on a worker.

A job on a worker belongs to one trainer replica, by a lease, and to one attempt, by a number that grows with each
claim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, Double, Select, Update, bindparam, func, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from trainer_service.database.schema import jobs
from trainer_service.jobs.fair_queue import QueueHead, in_order, queue_clock, share_of
from trainer_service.jobs.model import Job
from trainer_service.jobs.record import NO_REPLICA, Record, from_row
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store import event_log, tenant_shares, worker_slots
from trainer_service.jobs.store.conditions import LEASED, QUEUED
from trainer_service.jobs.store.job_records import JobRecords
from trainer_service.jobs.store.job_records import StaleAttempt as StaleAttempt

_ORPHANED = (jobs.c.state == JobState.CANCELLING.value) & (jobs.c.owner == NO_REPLICA)
_CLAIMS = "claims of waiting jobs"
"""Name of the lock that serializes claims, so that each claim sees the charges of the previous one."""

# The statements of every round of the dispatcher and the leases. To build one costs more than to execute it.
_GROUP = (jobs.c.base_model, jobs.c.tenant, jobs.c.solo)
_HEADS = (
    select(*_GROUP, func.min(jobs.c.queue_key), func.avg(jobs.c.queue_key), func.count())
    .where(QUEUED, jobs.c.trained.is_(False), jobs.c.not_before <= bindparam("now"))
    .group_by(*_GROUP)
)


def _claiming(*first: ColumnElement[bool], is_placed: bool) -> ReturningUpdate[Any]:
    """One statement that claims the first QUEUED job that meets the conditions. `is_placed`: it goes to a worker."""
    pick = (
        select(jobs.c.id)
        .where(QUEUED, *first)
        .order_by(jobs.c.queue_key, jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    now: BindParameter[float] = bindparam("now", type_=Double())
    return (
        update(jobs)
        .where(jobs.c.id == pick)
        .values(
            state=JobState.RUNNING.value,
            owner=bindparam("replica"),
            lease_until=bindparam("until"),
            claimed_at=now if is_placed else None,
            attempt=jobs.c.attempt + 1,
            start_time=func.coalesce(jobs.c.start_time, now),
            last_event=jobs.c.last_event + 1,
        )
        .returning(*jobs.c)
    )


_READY = (
    jobs.c.base_model == bindparam("model"),
    jobs.c.trained.is_(False),
    jobs.c.solo == bindparam("exclusive"),
    jobs.c.not_before <= bindparam("now"),
)
_WITH_READY, _WITH_QUEUED = tenant_shares.tenants_with(QUEUED, *_READY), tenant_shares.tenants_with(QUEUED)
_CLAIM = _claiming(*_READY, jobs.c.tenant == bindparam("of_tenant"), is_placed=True)
_CLAIM_TRAINED = _claiming(jobs.c.trained.is_(True), jobs.c.not_before <= bindparam("now"), is_placed=False)
_ANY_TRAINED = select(jobs.c.id).where(jobs.c.trained.is_(True), QUEUED | _ORPHANED)
_OF_OWNER = LEASED & (jobs.c.owner == bindparam("replica"))
_RENEW = update(jobs).where(_OF_OWNER).values(lease_until=bindparam("until"))
_HOLD = (
    update(jobs)
    .where(_OF_OWNER, jobs.c.id == bindparam("job_id"), jobs.c.attempt == bindparam("of_attempt"))
    .values(lease_until=bindparam("until"))
    .returning(jobs.c.state)
)
_HOLDINGS = select(jobs.c.id, jobs.c.attempt, jobs.c.state, jobs.c.pausing).where(_OF_OWNER)
_EXPIRED_LEASES = (
    select(jobs)
    .where(
        LEASED,
        jobs.c.lease_until < bindparam("lease_before"),
        jobs.c.owner.not_in((bindparam("except_owner"), NO_REPLICA)),
    )
    .order_by(jobs.c.tenant)  # all replicas charge shares in the same order, which avoids deadlocks
    .with_for_update(skip_locked=True)
)
_PAST_DEADLINE = select(jobs).where(QUEUED, jobs.c.deadline <= bindparam("now"), jobs.c.trained.is_(False))
_ANY_WAITING = select(_PAST_DEADLINE.with_only_columns(jobs.c.id).exists(), _ANY_TRAINED.exists())


@dataclass(frozen=True)
class Holding:
    """A job that a replica has, with the requests made for it meanwhile, possibly through another replica."""

    job_id: str
    attempt: int
    state: JobState
    pausing: bool


@dataclass(frozen=True)
class Look:
    """What a round of the dispatcher reads first."""

    holdings: list[Holding]
    any_past_deadline: bool
    """Whether there may be a job for `expire`."""
    any_trained: bool
    """Whether there may be a job for `claim_trained`."""


class JobStore(JobRecords):
    """Jobs in one database, with their queue and leases."""

    def look(self, owner: str, now: float) -> Look:
        """The jobs that a replica has, and whether there are jobs of two rare kinds, for which it needs locks."""
        with self._database.read() as connection:
            past_deadline, trained = connection.execute(_ANY_WAITING, {"now": now}).one()
            return Look(_holdings(connection, owner), bool(past_deadline), bool(trained))

    def heads(self, now: float) -> list[QueueHead]:
        """The jobs that may run now, grouped by base model, tenant and `exclusive`."""
        with self._database.read() as connection:
            rows = connection.execute(_HEADS, {"now": now}).all()
            shares = tenant_shares.read(connection, now) if rows else {}
        clock, found = queue_clock(shares), []
        for base_model, tenant, exclusive, key, mean_key, count in rows:
            share = share_of(shares, tenant)
            start, mean = max(clock, share.time), float(mean_key)
            found.append(QueueHead(base_model, key, count, exclusive, tenant, share.weight, start, mean))
        return found

    def waiting(self, base_model: str, limit: int) -> Sequence[str]:
        """Ids of the first jobs that wait for a worker with this base model."""
        query = select(jobs.c.id).where(QUEUED, jobs.c.base_model == base_model, jobs.c.trained.is_(False))
        return self._database.scalars(query.order_by(jobs.c.queue_key).limit(limit))

    def claim(
        self, base_model: str, owner: str, lease_until: float, now: float, *, exclusive: bool = False
    ) -> Record | None:
        """Makes a waiting job for this base model RUNNING and gives it to this replica: the first job of the tenant
        whose turn it is (`fair_queue`). Returns None if no such job waits.

        `exclusive`: whether to claim a job that needs a fresh worker for itself, or one that doesn't.
        """
        ready = {"model": base_model, "exclusive": exclusive, "now": now}
        with self._database.write() as connection:
            self._database.lock(connection, _CLAIMS)
            tenants = tenant_shares.with_jobs(connection, _WITH_READY, ready)
            if not tenants:
                return None
            shares, waiting = tenant_shares.read(connection, now), tenant_shares.with_jobs(connection, _WITH_QUEUED)
            for tenant in in_order(shares, tenants):
                parameters = ready | {"of_tenant": tenant, "replica": owner, "until": lease_until}
                if (claimed := claim_first(connection, _CLAIM, parameters)) is not None:
                    tenant_shares.record_claim(connection, shares, tenant, waiting)
                    return replace(claimed, weight=share_of(shares, tenant).weight)
        return None

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Sets the weights of tenants that have had jobs; other tenants get their weight with their first job."""
        with self._database.write() as connection:
            tenant_shares.set_known_weights(connection, weights)

    def claim_trained(self, owner: str, lease_until: float, now: float) -> Record | None:
        """Claims a job that only has to be published, or that was to be cancelled when its replica ended."""
        with self._database.write() as connection:
            if (cancelling := _adopt(connection, owner, lease_until)) is not None:
                return cancelling
            return claim_first(connection, _CLAIM_TRAINED, {"replica": owner, "until": lease_until, "now": now})

    def now(self) -> float:
        """The database's time, which measures leases. It is the same for all replicas, whatever their clocks say."""
        return self._database.now()

    def hold(self, job_id: str, attempt: int, owner: str, lease_until: float) -> JobState:
        """Renews the lease of one attempt, also an expired one, and returns the job's state. Raises StaleAttempt if the
        job was taken over.
        """
        parameters = {"job_id": job_id, "of_attempt": attempt, "replica": owner, "until": lease_until}
        with self._database.write() as connection:
            state = connection.scalar(_HOLD, parameters)
        if state is None:
            raise StaleAttempt
        return JobState(state)

    def renew(self, owner: str, lease_until: float) -> None:
        """Renews all leases of a replica: of its jobs and of its worker slots."""
        with self._database.write() as connection:
            connection.execute(_RENEW, {"replica": owner, "until": lease_until})
            worker_slots.renew(connection, owner, lease_until)

    def holdings(self, owner: str) -> list[Holding]:
        """The jobs that a replica has."""
        with self._database.read() as connection:
            return _holdings(connection, owner)

    def take_back(self, move: Callable[[Record], Record], *, lease_before: float, except_owner: str = "") -> list[Job]:
        """Applies `move` to every job that a replica has and whose lease ended before `lease_before` (`float("inf")`:
        whenever it ends), and frees the worker slots of those replicas. Returns the changed jobs.
        """
        limits = {"lease_before": lease_before, "except_owner": except_owner}
        with self._database.write() as connection:
            taken = self._move_all(connection, _EXPIRED_LEASES, move, limits)
            worker_slots.remove_expired(connection, lease_before, except_owner)
            return taken

    def expire(self, move: Callable[[Record], Record], now: float) -> list[Job]:
        """Applies `move` to every waiting job whose deadline has passed, and returns these jobs."""
        with self._database.write() as connection:
            return self._move_all(connection, _PAST_DEADLINE.with_for_update(skip_locked=True), move, {"now": now})

    def fail_waiting(self, base_model: str, move: Callable[[Record], Record], most: int) -> list[Job]:
        """Applies `move` to at most `most` jobs that wait for a base model, but to none while jobs of it are on
        workers. Returns the changed jobs.
        """
        on_workers = select(jobs.c.id).where(LEASED, jobs.c.base_model == base_model, jobs.c.claimed_at.is_not(None))
        waiting = select(jobs).where(QUEUED, jobs.c.trained.is_(False), jobs.c.base_model == base_model).limit(most)
        with self._database.write() as connection:
            if connection.execute(on_workers.limit(1)).first() is not None:
                return []
            return self._move_all(connection, waiting.with_for_update(skip_locked=True), move)

    def oldest_queued_seconds(self, now: float) -> Mapping[str, float]:
        """How long the oldest job that waits for a worker has been QUEUED, by base model with such a job."""
        waiting = (QUEUED) & jobs.c.trained.is_(False)
        query = select(jobs.c.base_model, func.min(jobs.c.queued_at)).where(waiting).group_by(jobs.c.base_model)
        return {name: max(0.0, now - queued_at) for name, queued_at in self._database.rows(query)}

    def _move_all(
        self,
        connection: Connection,
        query: Select[Any],
        move: Callable[[Record], Record],
        parameters: Mapping[str, Any] | None = None,
    ) -> list[Job]:
        """Applies `move` to the jobs that the query finds, which skips those locked by another transaction."""
        rows = connection.execute(query, parameters).mappings().all()
        return [self._write(connection, before, move(before), ()).job for before in map(from_row, rows)]


def _holdings(connection: Connection, owner: str) -> list[Holding]:
    rows = connection.execute(_HOLDINGS, {"replica": owner})
    return [Holding(row.id, row.attempt, JobState(row.state), row.pausing) for row in rows]


def _adopt(connection: Connection, owner: str, lease_until: float) -> Record | None:
    """Gives a trained job to this replica that stays CANCELLING."""
    pick = select(jobs.c.id).where(jobs.c.trained.is_(True), _ORPHANED).limit(1).with_for_update(skip_locked=True)
    changes = {"owner": owner, "lease_until": lease_until, "attempt": jobs.c.attempt + 1}
    statement = update(jobs).where(jobs.c.id == pick.scalar_subquery()).values(**changes).returning(*jobs.c)
    row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else from_row(row)


def claim_first(connection: Connection, statement: Update, parameters: Mapping[str, Any]) -> Record | None:
    """Claims the first QUEUED job that meets the statement's conditions (`_claiming`); skips jobs locked by another
    transaction.
    """
    row = connection.execute(statement, parameters).mappings().one_or_none()
    if row is None:
        return None
    record = from_row(row)
    event_log.append(connection, record.job.id, record.job.last_event, [record.job])
    return record
