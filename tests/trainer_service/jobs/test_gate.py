"""The publishing gate: each condition, both directions of better, and numbers that are not there."""

from __future__ import annotations

import math

import pytest

from trainer_service.jobs.gate import decide
from trainer_service.jobs.model import PublishGate
from trainer_service.training.spec import Metric


@pytest.mark.parametrize(
    ("gate", "metric", "tuned", "template", "current", "publish", "told"),
    [
        (None, Metric.LOSS, {}, {}, {}, True, "no gate"),
        (PublishGate(), Metric.LOSS, {"loss": 1.0}, {}, {}, True, "no conditions"),
        (PublishGate(beat_bare_model=True), Metric.LOSS, {"loss": 1.0}, {"loss": 2.0}, {}, True, "beats the bare model's 2"),
        (PublishGate(beat_bare_model=True), Metric.LOSS, {"loss": 2.0}, {"loss": 2.0}, {}, False, "does not beat the bare model's 2"),
        (PublishGate(beat_bare_model=True), Metric.ACCURACY, {"accuracy": 0.9}, {"accuracy": 0.5}, {}, True, "accuracy 0.9 beats"),
        (PublishGate(beat_bare_model=True), Metric.ACCURACY, {"accuracy": 0.9}, {}, {}, False, "was not measured"),
        (PublishGate(beat_bare_model=True), Metric.LOSS, {"loss": 1.0}, {"loss": math.nan}, {}, False, "was not measured"),
        (PublishGate(beat_current=True), Metric.CHRF, {"chrf": 60.0}, {}, {"chrf": 61.0}, False, "does not beat the current version's 61"),
        (PublishGate(beat_current=True), Metric.CHRF, {"chrf": 60.0}, {}, {}, True, "there is no current version"),
        (PublishGate(minimum_metric=0.5), Metric.LOSS, {"loss": 0.5}, {}, {}, True, "at most 0.5"),
        (PublishGate(minimum_metric=0.5), Metric.LOSS, {"loss": 0.6}, {}, {}, False, "above 0.5"),
        (PublishGate(minimum_metric=0.5), Metric.MACRO_F1, {"macro_f1": 0.4}, {}, {}, False, "below 0.5"),
        (PublishGate(minimum_metric=0.5), Metric.LOSS, {"loss": math.nan}, {}, {}, False, "not measured"),
        (PublishGate(minimum_metric=0.5), Metric.LOSS, {}, {}, {}, False, "no held-out examples"),
        (PublishGate(minimum_metric=0.9, beat_bare_model=True), Metric.LOSS, {"loss": 1.0}, {"loss": 2.0}, {}, False, "above 0.9"),
    ],
)
def test_decisions(
    gate: PublishGate | None,
    metric: Metric,
    tuned: dict[str, float],
    template: dict[str, float],
    current: dict[str, float],
    publish: bool,
    told: str,
) -> None:
    decision = decide(gate, metric, tuned, template, current)
    assert decision.publish is publish
    assert told in decision.reason
