"""How many jobs fit into a worker's memory, by what it was seen to use with so many. Pure.

The activations of a step are shared, so what counts is what one more job adds: the slope between what was used with few
jobs and with many. As long as only one number of jobs was seen, all that was added to the bare model is put down to
them: rather too much than too little.
"""

from __future__ import annotations

_SHARE = 0.9
"""Of the memory that is planned with: evaluation and fragmentation need some."""


class Capacity:
    """`observe` after each report, `max_jobs` for the scheduler."""

    def __init__(self) -> None:
        self._most_used: dict[int, int] = {}
        """Bytes, by number of jobs."""
        self._limit_bytes = 0

    def observe(self, num_jobs: int, used_bytes: int, limit_bytes: int) -> None:
        """With no job: the model alone, so the least that was seen counts, since a worker that was busy gives memory
        back late.
        """
        before = self._most_used.get(num_jobs, used_bytes)
        self._most_used[num_jobs] = min(before, used_bytes) if num_jobs == 0 else max(before, used_bytes)
        self._limit_bytes = limit_bytes

    def max_jobs(self) -> int | None:
        """At least one: whether a single job fits is found out by trying. None while too little was seen."""
        busy = sorted(count for count in self._most_used if count > 0)
        if not busy or (len(busy) == 1 and 0 not in self._most_used):
            return None
        few, many = busy[0] if len(busy) > 1 else 0, busy[-1]
        used_few, used_many = self._most_used[few], self._most_used[many]
        per_job = (used_many - used_few) / (many - few)
        if per_job <= 0:
            return None
        return max(1, many + int((self._limit_bytes * _SHARE - used_many) / per_job))
