"""Decides whether a trained prompt may be published: applies the job's conditions to held-out examples that did not
choose its checkpoint. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.values.spec import PublishGate
from trainer_service.jobs.comparisons import NAMES, estimate_text, outcome_of, told_apart
from trainer_service.training.comparison import BARE, CURRENT, MIN_EXAMPLES, Comparison, Estimate
from trainer_service.training.spec import Metric


@dataclass(frozen=True)
class Decision:
    """A decision with its reason, which includes the numbers."""

    publish: bool
    reason: str


@dataclass(frozen=True)
class Evidence:
    """Measurements of the tuned prompt."""

    estimate: Estimate | None = None
    """The job's metric; None if it was not measured."""
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """Comparisons by rival (`jobs.comparisons.NAMES`)."""
    has_current: bool = False
    """Whether the alias names a version. It is not measured if its blob is gone, or if it belongs to another base model
    and its job keeps nothing that could be compared (`publish.predecessor`).
    """
    is_apart: bool = True
    """Whether the measuring examples took no part in choosing the checkpoint."""
    why_unmeasured: str = ""
    """Why the current version was not measured; empty if unknown."""


def decide(gate: PublishGate | None, metric: Metric, evidence: Evidence) -> Decision:
    """Applies the gate's conditions.

    To beat a rival means to be better beyond chance (`training.comparison`). `minimum_metric` is compared with the
    measured value, not with its interval: the caller chose the bound and can add a margin to it.
    """
    if gate is None:
        return Decision(True, "no gate")
    if not gate.has_conditions:
        return Decision(True, "the gate has no conditions")
    name, estimate = metric.value.lower(), evidence.estimate
    if estimate is None:
        return Decision(
            False, f"{name} of the tuned prompt was not measured: there are no held-out examples, or it is not finite"
        )
    if estimate.num_examples < MIN_EXAMPLES:
        return Decision(
            False,
            f"{estimate.num_examples} held-out examples are too few to decide; at least {MIN_EXAMPLES} are needed",
        )
    if not evidence.is_apart:
        return Decision(
            False, "the held-out examples can't measure the prompt: they, or examples of the same input, chose it"
        )
    checks = [_minimum(metric, estimate, gate.minimum_metric)] if gate.minimum_metric is not None else []
    if gate.beat_bare_model:
        checks.append(_beaten(metric, evidence, BARE))
    if gate.beat_current:
        none = (True, "there is no current version to compare with")
        checks.append(_beaten(metric, evidence, CURRENT) if evidence.has_current else none)
    failed = [reason for passed, reason in checks if not passed]
    return Decision(not failed, "; ".join(failed or [reason for _, reason in checks]))


def _minimum(metric: Metric, estimate: Estimate, bound: float) -> tuple[bool, str]:
    value, limit = told_apart(estimate.value, bound)
    text = estimate_text(metric, estimate, value)
    if metric is Metric.LOSS:
        return estimate.value <= bound, f"{text} {'is at most' if estimate.value <= bound else 'is above'} {limit}"
    return estimate.value >= bound, f"{text} {'reaches' if estimate.value >= bound else 'is below'} {limit}"


def _beaten(metric: Metric, evidence: Evidence, rival: str) -> tuple[bool, str]:
    comparison = evidence.comparisons.get(rival)
    if comparison is None:
        why = f": {evidence.why_unmeasured}" if rival == CURRENT and evidence.why_unmeasured else ""
        return False, f"{metric.value.lower()} of {NAMES[rival]} was not measured{why}"
    return comparison.beats, outcome_of(comparison, rival)
