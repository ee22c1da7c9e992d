"""Which runs compute in this step: weighted fair queueing by positions computed, between tenants and within each. Pure
Python.

Every tenant has a virtual time, the positions that its runs have had so far divided by its weight; every run has one
within its tenant, its own positions divided by 2 to the power of its priority (-8 to 8). The tenant that is furthest
behind goes first, with the run of its that is, until the step's token budget is used: at least one run. So a priority
moves positions between the runs of one tenant, never from one tenant to another, and a tenant with many runs gets no
more than one with a single run that can use as much.

Who joins starts at the least virtual time of those present: it neither waits behind a long job nor takes back what it
has missed.
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
    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant[K]] = {}
        self._tenant_of: dict[K, str] = {}
        self._run_weights: dict[K, float] = {}

    def join(self, run: K, priority: int, tenant: str = "", weight: float = 1.0) -> None:
        """`weight`: of the tenant, for all its runs from now on."""
        first_time = min((present.time for present in self._tenants.values()), default=0.0)
        its = self._tenants.setdefault(tenant, _Tenant(weight, first_time))
        its.weight = weight
        its.run_times[run] = min(its.run_times.values(), default=0.0)
        self._tenant_of[run] = tenant
        self._run_weights[run] = 2.0 ** max(-MAX_PRIORITY, min(MAX_PRIORITY, priority))

    def leave(self, run: K) -> None:
        tenant = self._tenant_of.pop(run)
        del self._run_weights[run], self._tenants[tenant].run_times[run]
        if not self._tenants[tenant].run_times:
            del self._tenants[tenant]

    def choose(self, costs: Mapping[K, int], token_budget: int) -> list[K]:
        """The runs to compute, given what each would cost in positions; virtual times move on."""
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
            its = self._tenants[tenant]
            its.time += costs[run] / its.weight
            its.run_times[run] += costs[run] / self._run_weights[run]
        return chosen

    def __contains__(self, run: K) -> bool:
        return run in self._tenant_of

    def __len__(self) -> int:
        return len(self._tenant_of)
