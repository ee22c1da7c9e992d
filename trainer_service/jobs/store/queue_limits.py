"""Whether the queue and the limits of a caller and a tenant have room for one more job."""

from __future__ import annotations

from sqlalchemy import Connection, Select, bindparam, func, select

from shared.errors import Overloaded
from trainer_service.database.schema import jobs
from trainer_service.jobs.fair_queue import fair_part, share_of
from trainer_service.jobs.store import tenant_shares
from trainer_service.jobs.store.conditions import QUEUED, UNENDED

_NUM_QUEUED = select(func.count()).where(QUEUED)
_NUM_UNENDED = select(func.count()).where(UNENDED)
_NUM_OF_CALLER = _NUM_UNENDED.where(jobs.c.caller == bindparam("of"))
_NUM_OF_TENANT = _NUM_UNENDED.where(jobs.c.tenant == bindparam("of"))


def check(
    connection: Connection,
    caller: str,
    tenant: str,
    max_queued: int,
    max_active_of_caller: int,
    max_active_of_tenant: int | None,
) -> None:
    """Raises Overloaded naming the limit that leaves no room."""
    _check_room(connection, tenant, max_queued)
    _check_active(connection, _NUM_OF_CALLER, caller, "your", max_active_of_caller)
    if max_active_of_tenant is not None:
        _check_active(connection, _NUM_OF_TENANT, tenant, "your tenant's", max_active_of_tenant)


def _check_room(connection: Connection, of_tenant: str, max_queued: int) -> None:
    """Raises Overloaded if the queue is full and the tenant has its fair part of it or more. Tenants with less are
    not locked out by the others.
    """
    queued = connection.scalar(_NUM_QUEUED) or 0
    if queued < max_queued:
        return
    counts, shares = tenant_shares.counts_of_waiting(connection), tenant_shares.read_stored(connection)
    others = [share_of(shares, tenant).weight for tenant in counts if tenant != of_tenant]
    part, own = fair_part(max_queued, share_of(shares, of_tenant).weight, others), counts.get(of_tenant, 0)
    if own >= part:
        # The size of the part would reveal the number of other tenants.
        message = (
            f"the queue is full: at most {max_queued} jobs may wait, and {own} of your tenant's do, its fair part "
            "or more"
        )
        raise Overloaded(message, retry_after_seconds=30.0, queued=own)


def _check_active(connection: Connection, query: Select[int], of: str, whose: str, most: int) -> None:
    active = connection.scalar(query, {"of": of}) or 0
    if active >= most:
        message = (
            f"{active} of {whose} jobs have not ended, and the limit (active_jobs) is {most}: wait for one to end, "
            "or cancel one"
        )
        raise Overloaded(message, retry_after_seconds=60.0, active=active)
