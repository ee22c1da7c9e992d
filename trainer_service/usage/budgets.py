"""Compares the tenants' usage with their budgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from shared.caller import Budget, Tenant
from shared.store.usage import UsedUp
from shared.values.usage import BudgetStatus
from trainer_service.usage.ledger import UsageLedger


class Budgets:
    """The budgets of the current callers file. Methods block; all raise Unavailable."""

    def __init__(self, ledger: UsageLedger, clock: Callable[[], float] = time.time) -> None:
        self._ledger, self._clock = ledger, clock

    def check(self, tenant: Tenant, within: Connection | None = None) -> None:
        """Raises Overloaded if a hard budget of the tenant is used up. `within`: the transaction that creates a job."""
        found = used_up(self._status(tenant, budget, within) for budget in tenant.budgets if budget.hard)
        if tenant.name in found:
            raise found[tenant.name].error(self._clock())

    def statuses(self, tenants: Iterable[Tenant]) -> tuple[BudgetStatus, ...]:
        """All budgets of these tenants."""
        return tuple(self._status(tenant, budget) for tenant in tenants for budget in tenant.budgets)

    def _status(self, tenant: Tenant, budget: Budget, within: Connection | None = None) -> BudgetStatus:
        start, end = period(budget.per, datetime.fromtimestamp(self._clock(), UTC))
        used = self._ledger.used(tenant.name, budget, int(start.timestamp()), int(end.timestamp()), within)
        about: dict[str, Any] = {"of": budget.of, "limit": budget.limit, "per": budget.per}
        return BudgetStatus(tenant.name, budget.name, used=used, is_hard=budget.hard, reset_time=end, **about)


def period(per: str, now: datetime) -> tuple[datetime, datetime]:
    """Begin and end of the hour, day or month (UTC) that contains `now`."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    if per == "hour":
        return hour, hour + timedelta(hours=1)
    day = hour.replace(hour=0)
    if per == "day":
        return day, day + timedelta(days=1)
    month = day.replace(day=1)
    return month, (month + timedelta(days=32)).replace(day=1)


def used_up(statuses: Iterable[BudgetStatus]) -> Mapping[str, UsedUp]:
    """Of each tenant with used-up hard budgets, the one that resets last."""
    found: dict[str, UsedUp] = {}
    for status in statuses:
        if status.is_hard and status.is_used_up and status.reset_time is not None:
            resets_at = status.reset_time.timestamp()
            if status.tenant not in found or found[status.tenant].resets_at < resets_at:
                found[status.tenant] = UsedUp(budget=status.name, resets_at=resets_at)
    return found
