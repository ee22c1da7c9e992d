"""How long a step takes by its number of positions, learnt from the steps that ran. Pure arithmetic.

A line `fixed + each * positions` is fitted by least squares with exponential forgetting (recursive least squares with a
forgetting factor). On a CPU `each` dominates and a step of 256 positions takes twenty times as long as one of 4; on a
GPU `fixed` does.
"""

from __future__ import annotations

from dataclasses import dataclass

FORGETTING = 0.98
"""A step's weight after one more step: the last 50 or so count."""
MIN_STEPS = 8
"""Before so many steps nothing is said."""
MAX_OUTLIER = 3.0
"""A step counts at most as this many times its estimate: the machine, not the step, was slow."""


@dataclass
class StepPace:
    _steps: int = 0
    _weight: float = 0.0
    _positions: float = 0.0
    _seconds: float = 0.0
    _squares: float = 0.0
    _products: float = 0.0

    def observe(self, positions: int, seconds: float) -> None:
        """A step of so many positions took so many seconds."""
        if self._steps >= MIN_STEPS:
            seconds = min(seconds, MAX_OUTLIER * self.seconds(positions))
        self._steps += 1
        self._weight = FORGETTING * self._weight + 1.0
        self._positions = FORGETTING * self._positions + positions
        self._seconds = FORGETTING * self._seconds + seconds
        self._squares = FORGETTING * self._squares + positions * positions
        self._products = FORGETTING * self._products + positions * seconds

    def seconds(self, positions: int) -> float:
        """The estimate for a step of so many positions; 0 before the first step."""
        fixed, each = self._line()
        return fixed + each * positions

    def positions_within(self, seconds: float) -> int | None:
        """The most positions that take no longer; None while nothing is known, or where positions cost nothing that can
        be measured.
        """
        fixed, each = self._line()
        if self._steps < MIN_STEPS or each <= 0.0 or seconds <= 0.0:
            return None
        return max(0, int((seconds - fixed) / each))

    def _line(self) -> tuple[float, float]:
        """(fixed, each), neither negative. While all steps had one size, all of their time is put down to their
        positions.
        """
        if not self._weight or not self._positions:
            return 0.0, 0.0
        positions, seconds = self._positions / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - positions * positions
        each = seconds / positions
        if variance > 0.01 * positions * positions:
            slope = (self._products / self._weight - positions * seconds) / variance
            each = min(max(slope, 0.0), each)
        return seconds - each * positions, each
