"""Selects the running sequence that is preempted. Pure functions of plain data.

A share is a tenant's largest part of any one resource, rows or KV memory (dominant resource fairness, Ghodsi et al.,
NSDI 2011); the fair share is its weight among the tenants that have work. A preemption costs only time: the tokens are
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from inference_service.engine.core.running_request import RunningRequest

MAX_PREEMPTIONS = 3
"""After this many preemptions a request keeps its row until it ends or the memory is full."""
MIN_STEPS = 32
"""Steps that a sequence has before another tenant may take its row.

This time slice keeps tenants from taking each other's rows in turn without progress.
"""
FAR_UNDER = 0.5
"""Only a tenant below this part of its fair share may have a row freed, so two near theirs don't preempt each other."""


@dataclass(frozen=True)
class TenantShares:
    """Dominant shares, 0 to 1: `used[t]` is what tenant t has, `fair[t]` what it is entitled to."""

    used: dict[str, float]
    fair: dict[str, float]

    @staticmethod
    def of(
        running: Iterable[RunningRequest],
        weights: dict[str, float],
        rows: int,
        memory: Callable[[RunningRequest], float],
    ) -> TenantShares:
        """Compute the shares; `memory` gives a sequence's part of the KV memory, 0 to 1."""
        count, taken = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
        for sequence in running:
            count[sequence.tenant] += 1 / rows
            taken[sequence.tenant] += memory(sequence)
        total = sum(weights.values())
        return TenantShares(
            {t: max(count[t], taken[t]) for t in weights}, {t: weight / total for t, weight in weights.items()}
        )

    def excess(self, tenant: str) -> float:
        """The tenant's share divided by its fair share; above 1 it has too much."""
        return self.used[tenant] / self.fair[tenant]


def for_waiting(
    waiting: RunningRequest,
    running: Iterable[RunningRequest],
    shares: TenantShares,
    part: Callable[[RunningRequest], float],
    step: int,
) -> RunningRequest | None:
    """The sequence to preempt for `waiting`, which has no room; None if there is none.

    The first choice is a sequence of the same tenant with a lower priority. Otherwise, if the tenant is far below its
    share, it is one of the tenant that exceeds its share most, provided that this tenant keeps its fair share or the
    waiting tenant has nothing at all. `part` gives a sequence's dominant share.
    """
    candidates = [s for s in running if s.num_preemptions < MAX_PREEMPTIONS and not s.is_load]
    own = [s for s in candidates if s.tenant == waiting.tenant and s.priority < waiting.priority]
    if own:
        return max(own, key=lambda s: s.rank)
    has = shares.used[waiting.tenant]
    if has >= FAR_UNDER * shares.fair[waiting.tenant]:
        return None
    over = [
        s
        for s in candidates
        if s.tenant != waiting.tenant
        and step - s.started_step >= MIN_STEPS
        and shares.excess(s.tenant) > 1.0
        and (not has or shares.used[s.tenant] - part(s) >= shares.fair[s.tenant] - 1e-9)
    ]
    return max(over, key=lambda s: (shares.excess(s.tenant), s.rank), default=None)


def for_memory(running: Iterable[RunningRequest], shares: TenantShares) -> RunningRequest:
    """The sequence to preempt when the KV memory is full: the last one of the tenant that exceeds its share most."""
    return max(running, key=lambda s: (shares.excess(s.tenant), s.rank))
