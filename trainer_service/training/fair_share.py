"""Which runs compute in this step: weighted fair queueing by positions computed. Pure Python.

Every run has a virtual time, the positions it has had so far divided by its weight, 2 to the power of its priority (-8 to 8). The
runs that are furthest behind go first, as many as the step's token budget holds, and at least one. A run that joins starts at the
least virtual time of those present: it neither waits behind a long job nor takes back what it has missed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

MAX_PRIORITY = 8
K = TypeVar("K", bound=Hashable)


class FairShare(Generic[K]):
    def __init__(self) -> None:
        self._times: dict[K, float] = {}
        self._weights: dict[K, float] = {}

    def join(self, run: K, priority: int) -> None:
        self._times[run] = min(self._times.values(), default=0.0)
        self._weights[run] = 2.0 ** max(-MAX_PRIORITY, min(MAX_PRIORITY, priority))

    def leave(self, run: K) -> None:
        del self._times[run], self._weights[run]

    def choose(self, costs: Mapping[K, int], token_budget: int) -> list[K]:
        """The runs to compute, given what each would cost in positions; their virtual times move on."""
        chosen, used = list[K](), 0
        for run in sorted(costs, key=lambda run: self._times[run]):  # sorted is stable: earlier runs first among equals
            if chosen and used + costs[run] > token_budget:
                continue
            chosen.append(run)
            used += costs[run]
            self._times[run] += costs[run] / self._weights[run]
        return chosen

    def __contains__(self, run: K) -> bool:
        return run in self._times

    def __len__(self) -> int:
        return len(self._times)
