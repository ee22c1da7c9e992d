"""A token bucket that may be overdrawn: what a call costs is often known only after it."""

from __future__ import annotations

import time
from collections.abc import Callable


class Bucket:
    """Fills with `rate` a second up to `capacity`; open while there is anything in it."""

    def __init__(self, rate: float, capacity: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._capacity, self._clock = rate, capacity, clock
        self._level, self._time = capacity, clock()

    @property
    def level(self) -> float:
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._time) * self._rate)
        self._time = now
        return self._level

    def take(self, amount: float) -> None:
        """Below zero, too."""
        self._level = self.level - amount

    def seconds_until(self, amount: float) -> float:
        """Until there is so much in it; 0 if there is now. An amount above the capacity counts as the capacity."""
        return max(0.0, (min(amount, self._capacity) - self.level) / self._rate)

    @property
    def is_full(self) -> bool:
        return self.level >= self._capacity
