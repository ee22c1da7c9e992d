"""How many jobs fit into a worker's memory, estimated from its memory use at different numbers of jobs. Pure.

The activations of a step are shared, so only the memory that each further job adds counts: the slope between the use
with few jobs and with many. While only one number of jobs has been observed, everything above the bare model is
attributed to the jobs, which overestimates rather than underestimates their need.
"""

from __future__ import annotations

_SHARE = 0.9
"""Share of the memory limit available to jobs; evaluation and fragmentation need the rest."""


class Capacity:
    """Memory model of one worker: `observe` is called after each report, `max_jobs` by the scheduler."""

    def __init__(self) -> None:
        self._most_used: dict[int, int] = {}
        """Bytes used, by number of jobs."""
        self._limit_bytes = 0

    def observe(self, num_jobs: int, used_bytes: int, limit_bytes: int) -> None:
        """Records the memory use at a number of jobs: the largest value seen, but the smallest for zero jobs, because
        a worker returns memory late after its jobs have left.
        """
        before = self._most_used.get(num_jobs, used_bytes)
        self._most_used[num_jobs] = min(before, used_bytes) if num_jobs == 0 else max(before, used_bytes)
        self._limit_bytes = limit_bytes

    def max_jobs(self) -> int | None:
        """Jobs that fit, at least 1: whether a single job fits is found out by running it. None until enough was
        observed.
        """
        busy = sorted(count for count in self._most_used if count > 0)
        if not busy or (len(busy) == 1 and 0 not in self._most_used):
            return None
        few, many = busy[0] if len(busy) > 1 else 0, busy[-1]
        used_few, used_many = self._most_used[few], self._most_used[many]
        per_job = (used_many - used_few) / (many - few)
        if per_job <= 0:
            return None
        return max(1, many + int((self._limit_bytes * _SHARE - used_many) / per_job))
