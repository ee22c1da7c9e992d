"""The allowed range of a number, as metadata of a dataclass's field."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from shared.violations import Violations


def shown(number: float) -> str:
    """The number for an error message."""
    return str(number) if isinstance(number, int) else f"{number:.15g}"


@dataclass(frozen=True)
class Bounds:
    """A range. `low` and `high` themselves are allowed unless `above_low` or `below_high` is set."""

    low: float
    high: float = math.inf
    above_low: bool = False
    below_high: bool = False

    def contains(self, value: float) -> bool:
        """Whether a number is finite and within the range."""
        low = value > self.low if self.above_low else value >= self.low
        return low and (value < self.high if self.below_high else value <= self.high) and math.isfinite(value)

    def __str__(self) -> str:
        low = f"{'above' if self.above_low else 'at least'} {shown(self.low)}"
        if math.isinf(self.high):
            return low
        return f"{low} and {'below' if self.below_high else 'at most'} {shown(self.high)}"


def bounded(default: Any, low: float, high: float = math.inf, **more: bool) -> Any:
    """A field whose value is within `Bounds(low, high, **more)`, or None."""
    return field(default=default, metadata={"bounds": Bounds(low, high, **more)})


def check_bounds(value: Any, path: str, violations: Violations) -> None:
    """Adds a violation for each field of a dataclass that is out of its bounds."""
    for item in fields(value):
        bounds, number = item.metadata.get("bounds"), getattr(value, item.name)
        if bounds is not None and number is not None and not bounds.contains(number):
            violations.add(f"{path}.{item.name.removesuffix('_seconds')}", f"must be {bounds}, is {shown(number)}")
