"""The names of a report's models, and how its numbers are written."""

from __future__ import annotations

import math
from collections.abc import Mapping

ANSWERS: Mapping[str, str] = {
    "tuned": "tuned",
    "current": "version before",
    "bare": "bare model",
    "instructed": "instructed",
    "few_shot": "few-shot",
}
"""Titles of the answers, by field of HeldOutAnswer."""
RIVALS: Mapping[str, str] = {
    "current_version": "version before",
    "bare_model": "with template",
    "instructed_model": "instructed",
    "few_shot_model": "few-shot",
}
"""Titles of the rivals, by `Comparison.rival`."""


def number(value: float | None, digits: int = 4) -> str:
    """A number for people; a dash if there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def interval(low: float | None, high: float | None) -> str:
    """A 95 % interval; empty if there is none."""
    return "" if low is None or high is None else f"{low:.3g} to {high:.3g}"
