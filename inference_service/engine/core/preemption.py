"""Which running sequence gives its row to a waiting one. Pure functions of plain data.

A share is a tenant's largest part of any one resource, rows or KV memory (dominant resource fairness, Ghodsi et al.,
NSDI 2011); the fair one is its weight among the tenants that have work. Nothing is lost by a preemption but time: the
tokens stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from inference_service.engine.core.running_request import RunningRequest

MAX_PREEMPTIONS = 3
"""A request that was preempted this often keeps its row until it ends, or until the memory is spent."""
MIN_STEPS = 32
"""A row is not taken away for another tenant before its sequence had this many steps: a time slice, which keeps tenants
from taking each other's rows in turn without getting anywhere.
"""
FAR_UNDER = 0.5
"""Of its fair share: only a tenant below it may have a row freed, so that two tenants near their shares leave each
other alone.
"""


@dataclass(frozen=True)
class Usage:
    """`used[t]`: a tenant's dominant share of what the engine has, 0 to 1; `fair[t]`: the share it is entitled to."""

    used: dict[str, float]
    fair: dict[str, float]

    @staticmethod
    def of(
        running: Iterable[RunningRequest],
        weights: dict[str, float],
        rows: int,
        memory: Callable[[RunningRequest], float],
    ) -> Usage:
        """`memory` gives a sequence's part of the KV memory, 0 to 1."""
        count, taken = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
        for sequence in running:
            count[sequence.tenant] += 1 / rows
            taken[sequence.tenant] += memory(sequence)
        total = sum(weights.values())
        return Usage(
            {t: max(count[t], taken[t]) for t in weights}, {t: weight / total for t, weight in weights.items()}
        )

    def excess(self, tenant: str) -> float:
        """How many times its fair share a tenant has; above 1 it has too much."""
        return self.used[tenant] / self.fair[tenant]


def for_waiting(
    waiting: RunningRequest,
    running: Iterable[RunningRequest],
    usage: Usage,
    part: Callable[[RunningRequest], float],
    step: int,
) -> RunningRequest | None:
    """The sequence that gives way to `waiting`, for which there is no room, or None.

    First one of the same tenant with a lower priority; else, if the tenant is far under its share, one of the tenant
    that is furthest over its own, as long as that leaves it its fair share or the waiting tenant has nothing at all.
    `part` gives a sequence's dominant share.
    """
    candidates = [s for s in running if s.num_preemptions < MAX_PREEMPTIONS and not s.is_load]
    own = [s for s in candidates if s.tenant == waiting.tenant and s.priority < waiting.priority]
    if own:
        return max(own, key=lambda s: s.rank)
    has = usage.used[waiting.tenant]
    if has >= FAR_UNDER * usage.fair[waiting.tenant]:
        return None
    over = [
        s
        for s in candidates
        if s.tenant != waiting.tenant
        and step - s.started_step >= MIN_STEPS
        and usage.excess(s.tenant) > 1.0
        and (not has or usage.used[s.tenant] - part(s) >= usage.fair[s.tenant] - 1e-9)
    ]
    return max(over, key=lambda s: (usage.excess(s.tenant), s.rank), default=None)


def for_memory(running: Iterable[RunningRequest], usage: Usage) -> RunningRequest:
    """The sequence that gives way when the KV memory is spent: the lowest rank of the tenant that is furthest over its
    share.
    """
    return max(running, key=lambda s: (usage.excess(s.tenant), s.rank))
