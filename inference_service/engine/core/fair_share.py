"""Weighted fair shares between tenants. Pure Python: tokens and weights in, an order and integer parts out.

Admission follows a counter of served tokens for each tenant, divided by its weight; the tenant with the smallest
counter is first (the Virtual Token Counter, Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). A
tenant that becomes active again starts with at least the smallest counter of the active tenants (as in start-time fair
queueing, Goyal et al., SIGCOMM 1996), so idle time earns no credit. It keeps its own counter if that is larger, so a
pause cancels no debt.

The positions of one step are divided max-min fair by weight (Demers et al., SIGCOMM 1989), without regard to earlier
steps: a tenant that got little before can't take a whole step from the streams of other tenants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from inference_service.engine.core.integrity import IntegrityError


@dataclass
class FairShares:
    """Counters of tenants. `served[t]` is the number of tokens computed for tenant t divided by its weight."""

    served: dict[str, float] = field(default_factory=dict)
    _charged: dict[str, int] = field(default_factory=dict)
    """The value of `_charges` when each tenant was last served."""
    _charges: int = 0
    _active: frozenset[str] = frozenset()
    _backlogged: frozenset[str] = frozenset()

    def update(self, active: Iterable[str], backlogged: Iterable[str]) -> None:
        """Set the tenants with work and those with waiting requests. Call it before `order`."""
        now, waiting = frozenset(active), frozenset(backlogged)
        for tenants, before in ((now, self._active), (waiting, self._backlogged)):
            # A tenant that arrives starts level with the active ones; it earns no credit for idle time.
            start = min((self.served[tenant] for tenant in tenants & before), default=0.0)
            for tenant in tenants - before:
                self.served[tenant] = max(self.served.get(tenant, 0.0), start)
        # A counter at or below the smallest active one is obsolete: its tenant would start there anyway. Without active
        # tenants all counters are dropped, so the dictionary doesn't grow forever.
        floor = min((self.served[tenant] for tenant in now), default=math.inf)
        self.served = {tenant: value for tenant, value in self.served.items() if tenant in now or value > floor}
        self._charged = {tenant: when for tenant, when in self._charged.items() if tenant in self.served}
        self._active, self._backlogged = now, waiting

    def charge(self, tenant: str, tokens: int, weight: float) -> None:
        """Count `tokens` positions computed for the tenant."""
        self._charges += 1
        self._charged[tenant] = self._charges
        self.served[tenant] = self.served.get(tenant, 0.0) + tokens / weight

    def order(self) -> list[str]:
        """Tenants with waiting requests, the least served first; ties go to the one served longest ago."""
        return sorted(self._backlogged, key=lambda tenant: (self.served[tenant], self._charged.get(tenant, 0), tenant))

    def check_integrity(self) -> None:
        """Raise IntegrityError if an active tenant has no counter or a counter is invalid."""
        if not self._backlogged <= self._active or not self._active <= self.served.keys():
            raise IntegrityError(
                f"tenants without counter: {sorted((self._backlogged | self._active) - self.served.keys())[:5]}"
            )
        if any(not math.isfinite(value) or value < 0 for value in self.served.values()):
            raise IntegrityError("a tenant's counter of served tokens is negative or not finite")


def split(
    total: int, demands: Mapping[str, int], weights: Mapping[str, float], first: Mapping[str, float]
) -> dict[str, int]:
    """Divide `total` among the demands, max-min fair by weight.

    The parts are whole numbers that differ from the exact parts by less than one. No part exceeds its demand, and all
    of `total` is distributed while any demand remains. The remainder of rounding goes to the tenants with the smallest
    value in `first`.
    """
    parts = dict.fromkeys(demands, 0)
    open_tenants = {tenant for tenant, demand in demands.items() if demand > 0}
    left = float(min(total, sum(max(0, demand) for demand in demands.values())))
    exact = dict.fromkeys(demands, 0.0)
    while open_tenants and left > 1e-9:
        weight = sum(weights[tenant] for tenant in open_tenants)
        level = min(left / weight, min((demands[tenant] - exact[tenant]) / weights[tenant] for tenant in open_tenants))
        for tenant in open_tenants:
            exact[tenant] += level * weights[tenant]
        left -= level * weight
        open_tenants = {tenant for tenant in open_tenants if demands[tenant] - exact[tenant] > 1e-9}
    for tenant, value in exact.items():
        parts[tenant] = min(demands[tenant], int(value + 1e-6))
    rest = min(total, sum(max(0, demand) for demand in demands.values())) - sum(parts.values())
    # Tenants whose exact part was not whole come first; the others already have their demand or their exact part.
    waiting = sorted(demands, key=lambda tenant: (exact[tenant] - parts[tenant] < 1e-6, first.get(tenant, 0.0), tenant))
    for tenant in waiting:
        if rest <= 0:
            break
        if parts[tenant] < demands[tenant]:
            parts[tenant] += 1
            rest -= 1
    return parts
