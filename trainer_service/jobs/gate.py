"""Whether a trained prompt may be published: the conditions of its job, on the held-out numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainer_service.jobs.model import PublishGate
from trainer_service.training.spec import Metric

_NAMES = {metric: metric.value.lower() for metric in Metric}


@dataclass(frozen=True)
class Decision:
    """`reason` is for people and has the numbers."""

    publish: bool
    reason: str


def decide(
    gate: PublishGate | None,
    metric: Metric,
    tuned: Mapping[str, float],
    template: Mapping[str, float],
    current: Mapping[str, float],
) -> Decision:
    """`template`: the bare model with the rendered template. `current`: the version that the alias named, empty if it named none."""
    if gate is None:
        return Decision(True, "no gate")
    name = _NAMES[metric]
    value = tuned.get(name, math.nan)
    if math.isnan(value):
        return Decision(False, f"{name} of the tuned prompt was not measured: the job has no held-out examples")
    checks = [_minimum(metric, value, gate.minimum_metric)]
    if gate.beat_bare_model:
        checks.append(_better(metric, value, template.get(name), "the bare model"))
    if gate.beat_current:
        checks.append(
            _better(metric, value, current.get(name), "the current version") if current else (True, "there is no current version")
        )
    told = [reason for _, reason in checks if reason]
    failed = [reason for passed, reason in checks if not passed]
    return Decision(not failed, "; ".join(failed or told) or "the gate has no conditions")


def _minimum(metric: Metric, value: float, bound: float | None) -> tuple[bool, str]:
    if bound is None:
        return True, ""
    if metric is Metric.LOSS:
        return value <= bound, f"loss {value:.4g} {'is at most' if value <= bound else 'is above'} {bound:.4g}"
    return value >= bound, f"{_NAMES[metric]} {value:.4g} {'reaches' if value >= bound else 'is below'} {bound:.4g}"


def _better(metric: Metric, value: float, other: float | None, what: str) -> tuple[bool, str]:
    if other is None or math.isnan(other):
        return False, f"{_NAMES[metric]} of {what} was not measured"
    better = value < other if metric is Metric.LOSS else value > other
    return better, f"{_NAMES[metric]} {value:.4g} {'beats' if better else 'does not beat'} {what}'s {other:.4g}"
