"""A token bucket that can be overdrawn, because the cost of a call is often known only after the call."""

from __future__ import annotations

import time
from collections.abc import Callable


class Bucket:
    """A token bucket. It gains `rate` tokens per second up to `capacity`, and starts full."""

    def __init__(self, rate: float, capacity: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._capacity, self._clock = rate, capacity, clock
        self._level, self._time = capacity, clock()

    @property
    def level(self) -> float:
        """Current content; negative if overdrawn."""
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._time) * self._rate)
        self._time = now
        return self._level

    def take(self, amount: float) -> None:
        """Remove `amount`; the level may become negative."""
        self._level = self.level - amount

    def seconds_until(self, amount: float) -> float:
        """Seconds until the level reaches `amount`; 0 if it has. Amounts above the capacity count as the capacity."""
        return max(0.0, (min(amount, self._capacity) - self.level) / self._rate)

    @property
    def is_full(self) -> bool:
        """Whether the level has reached the capacity."""
        return self.level >= self._capacity
