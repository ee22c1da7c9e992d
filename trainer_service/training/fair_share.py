"""Weighted fair queueing of runs by positions computed, between tenants and within each tenant. Pure Python.

Every tenant has a virtual time: the positions computed for its runs divided by its weight. Every run has a virtual time
within its tenant: its positions divided by 2 to the power of its priority (-8 to 8). A step takes the tenant with the
least virtual time, and that tenant's run with the least virtual time, until the token budget is used; at least one run.
So a priority moves positions between the runs of one tenant, never between tenants, and a tenant with many runs gets no
more than a tenant with one run that can use as much.

A new tenant or run starts at the least virtual time of those present: it neither waits behind a long job nor makes up
for the time before it joined.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MAX_PRIORITY = 8
K = TypeVar("K", bound=Hashable)


@dataclass
class _Tenant(Generic[K]):
    weight: float
    time: float
    run_times: dict[K, float] = field(default_factory=dict)


class FairShare(Generic[K]):
    """The virtual times of all tenants and runs."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant[K]] = {}
        self._tenant_of: dict[K, str] = {}
        self._run_weights: dict[K, float] = {}

    def join(self, run: K, priority: int, tenant: str = "", weight: float = 1.0) -> None:
        """Add a run. `weight` becomes the tenant's weight for all its runs."""
        first_time = min((present.time for present in self._tenants.values()), default=0.0)
        owner = self._tenants.setdefault(tenant, _Tenant(weight, first_time))
        owner.weight = weight
        owner.run_times[run] = min(owner.run_times.values(), default=0.0)
        self._tenant_of[run] = tenant
        self._run_weights[run] = 2.0 ** max(-MAX_PRIORITY, min(MAX_PRIORITY, priority))

    def leave(self, run: K) -> None:
        """Remove a run, and its tenant if it was the last one."""
        tenant = self._tenant_of.pop(run)
        del self._run_weights[run], self._tenants[tenant].run_times[run]
        if not self._tenants[tenant].run_times:
            del self._tenants[tenant]

    def choose(self, costs: Mapping[K, int], token_budget: int) -> list[K]:
        """Choose the runs of a step, given each run's cost in positions, and advance their virtual times."""
        waiting: dict[str, list[K]] = {}
        for run in sorted(costs, key=lambda run: self._tenants[self._tenant_of[run]].run_times[run]):
            waiting.setdefault(self._tenant_of[run], []).append(
                run
            )  # sorted is stable: earlier runs first among equals
        chosen, used = list[K](), 0
        while waiting:
            tenant = min(waiting, key=lambda tenant: self._tenants[tenant].time)
            run = waiting[tenant].pop(0)
            if not waiting[tenant]:
                del waiting[tenant]
            if chosen and used + costs[run] > token_budget:
                continue
            chosen.append(run)
            used += costs[run]
            owner = self._tenants[tenant]
            owner.time += costs[run] / owner.weight
            owner.run_times[run] += costs[run] / self._run_weights[run]
        return chosen

    def __contains__(self, run: K) -> bool:
        return run in self._tenant_of

    def __len__(self) -> int:
        return len(self._tenant_of)
