"""When a waiting job will probably start: a guess from how long jobs take here, and from how far those on workers are. Pure.

A guess is made only where there is something to guess from. It is wrong by as much as the jobs ahead are unlike those before them.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """What is known of the jobs on workers and of those that ended. Times are seconds since the epoch."""

    num_owners: int = 0
    """Trainer replicas that have jobs on workers."""
    running: Sequence[tuple[float, float | None]] = ()
    """Since when each job is on its worker, and when it will probably be done, if it says so."""
    recent_seconds: Sequence[float] = ()
    """Time on workers of jobs that succeeded lately."""


def starts(workload: Workload, num_waiting: int, num_places: int, launch_seconds: float, now: float) -> list[float | None]:
    """When each of the waiting jobs, in queue order, will probably reach a worker.

    `num_places`: jobs that fit on one replica's workers. `launch_seconds`: until a worker that has to be started takes jobs, 0 where one is
    ready.
    """
    typical = _typical_seconds(workload)
    places = max(num_places * max(1, workload.num_owners), len(workload.running))
    ends = [_end(since, end, typical, now) for since, end in workload.running]
    free: list[float | None] = [now + launch_seconds] * (places - len(ends))
    known = [end for end in [*free, *ends] if end is not None]
    heapq.heapify(known)
    found: list[float | None] = []
    for _ in range(num_waiting):
        start = heapq.heappop(known) if known else None
        found.append(start)
        if start is not None and typical is not None:
            heapq.heappush(known, start + typical)
    return found


def _end(since: float, end: float | None, typical: float | None, now: float) -> float | None:
    if end is not None:
        return max(now, end)
    return max(now, since + typical) if typical is not None else None


def _typical_seconds(workload: Workload) -> float | None:
    """Median, since one long job among many short ones says little about the next."""
    running = [end - since for since, end in workload.running if end is not None and end > since]
    samples = [*workload.recent_seconds, *running]
    return statistics.median(samples) if samples else None
