"""Which of several computations is the fastest on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable


def best_seconds(*works: Callable[[], object], repeats: int = 16) -> list[float]:
    """The shortest time in seconds of each of `works`, of `repeats` runs in turn, so a busy moment affects none alone."""
    best = [float("inf")] * len(works)
    for _ in range(repeats):
        for index, work in enumerate(works):
            started = time.perf_counter()
            work()
            best[index] = min(best[index], time.perf_counter() - started)
    return best
