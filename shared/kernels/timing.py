"""Finds the fastest of several computations on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable


def best_seconds(*works: Callable[[], object], repeats: int = 16) -> list[float]:
    """Each work's shortest time in seconds of `repeats` runs. Works run in turn, so a busy moment affects all."""
    best = [float("inf")] * len(works)
    for _ in range(repeats):
        for index, work in enumerate(works):
            started = time.perf_counter()
            work()
            best[index] = min(best[index], time.perf_counter() - started)
    return best
