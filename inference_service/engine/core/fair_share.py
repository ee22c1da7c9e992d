"""Weighted fair shares between tenants. Pure Python: tokens and weights in, an order and integer parts out.

Admission follows a counter of served tokens for each tenant, divided by its weight: the smallest goes first (the
Virtual Token Counter, Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). A tenant that comes back
takes at least the smallest counter among those that are there (as in start-time fair queueing, Goyal et al., SIGCOMM
1996), so idle time earns no credit; it keeps its own counter if that is larger, so a pause sheds no debt.

The positions of one step are divided max-min fair by weight (Demers et al., SIGCOMM 1989), without regard to earlier
steps: a tenant that got little before can't take a whole step from the streams of the others now.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from inference_service.engine.core.integrity import IntegrityError


@dataclass
class FairShares:
    """Counters of tenants. `served[t]`: tokens computed for a tenant over its weight, on a common scale."""

    served: dict[str, float] = field(default_factory=dict)
    _charged: dict[str, int] = field(default_factory=dict)
    """When each tenant was served last, in charges so far."""
    _charges: int = 0
    _active: frozenset[str] = frozenset()
    _backlogged: frozenset[str] = frozenset()

    def update(self, active: Iterable[str], backlogged: Iterable[str]) -> None:
        """The tenants that have work now, and those of them that have something waiting. Call it before `order`."""
        now, waiting = frozenset(active), frozenset(backlogged)
        for tenants, before in ((now, self._active), (waiting, self._backlogged)):
            # Whoever comes starts with those that are there, and earns nothing for the time in which it wanted nothing.
            start = min((self.served[tenant] for tenant in tenants & before), default=0.0)
            for tenant in tenants - before:
                self.served[tenant] = max(self.served.get(tenant, 0.0), start)
        # A counter at or below the smallest active one says nothing any more: its tenant would start there anyway. When
        # nothing is active all counters go, so they neither grow nor pile up for ever.
        floor = min((self.served[tenant] for tenant in now), default=math.inf)
        self.served = {tenant: value for tenant, value in self.served.items() if tenant in now or value > floor}
        self._charged = {tenant: when for tenant, when in self._charged.items() if tenant in self.served}
        self._active, self._backlogged = now, waiting

    def charge(self, tenant: str, tokens: int, weight: float) -> None:
        """`tokens` positions are computed for the tenant."""
        self._charges += 1
        self._charged[tenant] = self._charges
        self.served[tenant] = self.served.get(tenant, 0.0) + tokens / weight

    def order(self) -> list[str]:
        """Tenants with something waiting, the least served first; of equal ones that which waits longest, so a newcomer
        is next.
        """
        return sorted(self._backlogged, key=lambda tenant: (self.served[tenant], self._charged.get(tenant, 0), tenant))

    def check_integrity(self) -> None:
        if not self._backlogged <= self._active or not self._active <= self.served.keys():
            raise IntegrityError(
                f"tenants have work and no counter: {sorted((self._backlogged | self._active) - self.served.keys())[:5]}"
            )
        if any(not math.isfinite(value) or value < 0 for value in self.served.values()):
            raise IntegrityError("a tenant's counter of served tokens is negative or not finite")


def split(
    total: int, demands: Mapping[str, int], weights: Mapping[str, float], first: Mapping[str, float]
) -> dict[str, int]:
    """`total` divided among the demands, max-min fair by weight, in whole numbers that differ from the exact parts by
    less than one.

    No part exceeds its demand, and everything is given out while any demand is left. What rounding leaves goes to those
    with the smallest value in `first`.
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
    # Exact parts that were not whole come first: the others have all that they asked for or all that is due to them.
    waiting = sorted(demands, key=lambda tenant: (exact[tenant] - parts[tenant] < 1e-6, first.get(tenant, 0.0), tenant))
    for tenant in waiting:
        if rest <= 0:
            break
        if parts[tenant] < demands[tenant]:
            parts[tenant] += 1
            rest -= 1
    return parts
