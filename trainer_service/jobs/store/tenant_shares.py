"""Tenants' shares as rows. The transactions that claim jobs and take them off their workers read and change them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    select,
    update,
)

from trainer_service.database.schema import jobs, tenant_shares
from trainer_service.jobs.fair_queue import QUANTUM_SECONDS, Shares, TenantShare, claimed
from trainer_service.jobs.record import Record
from trainer_service.jobs.store.conditions import LEASED, QUEUED

_ON_A_WORKER = LEASED & jobs.c.claimed_at.is_not(None)
_SHARES = select(tenant_shares)
_ANY_QUEUED = select(jobs.c.id).where(QUEUED).limit(1)
_CHANGE = update(tenant_shares).where(tenant_shares.c.tenant == bindparam("of_tenant"))
_ADD = insert(tenant_shares)
_WEIGHT = select(tenant_shares.c.weight).where(tenant_shares.c.tenant == bindparam("of_tenant"))
_CHARGE = _CHANGE.values(
    virtual_time=tenant_shares.c.virtual_time + bindparam("seconds", type_=Double()) / tenant_shares.c.weight
)
_elapsed: ColumnElement[float] = bindparam("now", type_=Double()) - jobs.c.claimed_at
_quantum: ColumnElement[float] = bindparam("quantum", type_=Double())
_HELD = (
    select(jobs.c.tenant, func.sum(case((_elapsed > _quantum, _elapsed), else_=_quantum)), func.count())
    .where(_ON_A_WORKER)
    .group_by(jobs.c.tenant)
)


def read_stored(connection: Connection) -> dict[str, TenantShare]:
    """Shares by tenant, not counting the jobs on workers now."""
    rows = connection.execute(_SHARES)
    return {row.tenant: TenantShare(row.tenant, row.weight, row.virtual_time, row.clock) for row in rows}


def read(connection: Connection, now: float) -> dict[str, TenantShare]:
    """Shares by tenant, including the jobs on workers at `now`."""
    found = read_stored(connection)
    for tenant, held_seconds, num_held in connection.execute(_HELD, {"now": now, "quantum": QUANTUM_SECONDS}):
        found[tenant] = replace(
            found.get(tenant) or TenantShare(tenant), held_seconds=float(held_seconds), num_held=num_held
        )
    return found


def tenants_with(*conditions: ColumnElement[bool]) -> Select[Any]:
    """A query for the tenants that have a job for which the conditions hold. It needs one index look-up per tenant."""
    any_job = exists().where(and_(jobs.c.tenant == tenant_shares.c.tenant, *conditions))
    return select(tenant_shares.c.tenant).where(any_job)


def with_jobs(connection: Connection, query: Select[Any], parameters: Mapping[str, Any] | None = None) -> list[str]:
    """Tenants by a query of `tenants_with`."""
    return list(connection.scalars(query, parameters))


def counting(waiting: ColumnElement[bool]) -> Select[str, int]:
    """A query for the number of jobs that meet the condition, by tenant."""
    return select(jobs.c.tenant, func.count()).where(waiting).group_by(jobs.c.tenant)


_COUNTS_OF_QUEUED = counting(QUEUED)


def counts_of_waiting(connection: Connection, query: Select[str, int] = _COUNTS_OF_QUEUED) -> dict[str, int]:
    """Number of queued jobs by tenant, or what another query of `counting` counts."""
    return {row[0]: row[1] for row in connection.execute(query)}


def set_weight(connection: Connection, tenant: str, weight: float) -> None:
    """Sets the tenant's weight and creates its share if it has none. The caller holds the lock of the tenant's name."""
    known = connection.scalar(_WEIGHT, {"of_tenant": tenant})
    if known is None:
        connection.execute(_ADD, {"tenant": tenant, "weight": weight, "virtual_time": 0.0, "clock": 0.0})
    elif known != weight:
        connection.execute(_CHANGE, {"of_tenant": tenant, "weight": weight})


def set_known_weights(connection: Connection, weights: Mapping[str, float]) -> None:
    """Sets the weights of tenants that have had jobs; the others get theirs with their first job."""
    for tenant, weight in sorted(weights.items()):
        different = (tenant_shares.c.tenant == tenant) & (tenant_shares.c.weight != weight)
        connection.execute(update(tenant_shares).where(different).values(weight=weight))


def record_claim(connection: Connection, shares: Shares, tenant: str, waiting: Collection[str]) -> None:
    """Charges the tenant for a job that became RUNNING. `shares` and `waiting` are from before the claim."""
    is_last = connection.execute(_ANY_QUEUED).first() is None
    moved = claimed(shares, tenant, waiting, is_last=is_last)
    changes = {"virtual_time": moved.virtual_time, "clock": moved.clock}
    connection.execute(_CHANGE, {"of_tenant": tenant, **changes})


def record_move(connection: Connection, before: Record, after: Record) -> None:
    """Charges the tenant for the job's time on its worker, if the job leaves the worker with this change."""
    if before.claimed_at is None or after.claimed_at is not None:
        return
    seconds = after.job.runtime_seconds - before.job.runtime_seconds
    connection.execute(_CHARGE, {"of_tenant": before.job.tenant, "seconds": seconds})
