"""Estimates the time of a step from its number of positions, fitted to earlier steps. Pure arithmetic.

A line `fixed + each * positions` is fitted by least squares with exponential forgetting (recursive least squares with a
forgetting factor). On a CPU `each` dominates, and a step of 256 positions takes twenty times as long as one of 4; on a
GPU `fixed` dominates.
"""

from __future__ import annotations

from dataclasses import dataclass

FORGETTING = 0.98
"""Factor of a step's weight per later step: about the last 50 steps count."""
MIN_STEPS = 8
"""Steps to observe before the estimate is used."""
MAX_OUTLIER = 3.0
"""A step counts at most as this multiple of its estimate, since the machine and not the step was slow."""


@dataclass
class StepPace:
    """The fitted line. `observe` adds a step, the other methods read the estimate."""

    _steps: int = 0
    _weight: float = 0.0
    _positions: float = 0.0
    _seconds: float = 0.0
    _squares: float = 0.0
    _products: float = 0.0

    def observe(self, positions: int, seconds: float) -> None:
        """Add a step of `positions` positions that took `seconds`."""
        if self._steps >= MIN_STEPS:
            seconds = min(seconds, MAX_OUTLIER * self.seconds(positions))
        self._steps += 1
        self._weight = FORGETTING * self._weight + 1.0
        self._positions = FORGETTING * self._positions + positions
        self._seconds = FORGETTING * self._seconds + seconds
        self._squares = FORGETTING * self._squares + positions * positions
        self._products = FORGETTING * self._products + positions * seconds

    def seconds(self, positions: int) -> float:
        """The estimated time of a step of `positions` positions; 0 before the first step."""
        fixed, each = self._line()
        return fixed + each * positions

    def positions_within(self, seconds: float) -> int | None:
        """The largest number of positions whose estimate is at most `seconds`.

        None before `MIN_STEPS` steps, or if the cost of a position is not measurable.
        """
        fixed, each = self._line()
        if self._steps < MIN_STEPS or each <= 0.0 or seconds <= 0.0:
            return None
        return max(0, int((seconds - fixed) / each))

    def _line(self) -> tuple[float, float]:
        """(fixed, each), neither negative. If all steps have had the same size, their time is attributed to `each`."""
        if not self._weight or not self._positions:
            return 0.0, 0.0
        positions, seconds = self._positions / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - positions * positions
        each = seconds / positions
        if variance > 0.01 * positions * positions:
            slope = (self._products / self._weight - positions * seconds) / variance
            each = min(max(slope, 0.0), each)
        return seconds - each * positions, each
