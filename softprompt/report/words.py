"""The names of a report's models, and how its numbers are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from shared.values.hyperparameters import Init

if TYPE_CHECKING:
    from softprompt.types.report import JobReport

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
    return "–" if value is None or not math.isfinite(value) else f"{value + 0.0:.{digits}g}"  # never -0


def loss(value: float) -> str:
    """A loss in a line that is written again and again; a dash if the step was skipped."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def amount(value: float) -> str:
    """A number with up to three decimals; with three digits if it is smaller than 0.001."""
    return f"{value:.3f}".rstrip("0").rstrip(".") if value == 0 or abs(value) >= 0.001 else f"{value:.3g}"


def job_metric(report: JobReport) -> str:
    """The metric of a job, as in its results; empty if it is unknown."""
    settings = report.job.effective_spec.hyperparameters if report.job.effective_spec is not None else None
    return settings.metric.value.lower() if settings is not None and settings.metric is not None else ""


def value_text(value: Any) -> str:
    """A setting or a fact for people."""
    if isinstance(value, StrEnum):
        return value.value.lower()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {item:g}" for name, item in value.items())
    return str(value)


def init_text(init: Init, most: int | None = None) -> str:
    """The method of an init, and its source or at most `most` characters of its text."""
    method = "" if init.method is None else value_text(init.method)
    return " ".join(filter(None, (method, init.source or init.text[:most])))


def interval(low: float | None, high: float | None) -> str:
    """A 95 % interval; empty if there is none."""
    return "" if low is None or high is None else f"{number(low, 3)} to {number(high, 3)}"
