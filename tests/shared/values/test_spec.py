"""Checks of a spec that need neither data nor model."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared.errors import InvalidInput
from shared.values.enums import InitMethod
from shared.values.hyperparameters import Hyperparameters, Init
from shared.values.sampling import Sampling
from shared.values.spec import MAX_ANNOTATIONS, PublishGate, PublishPolicy, TuningSpec
from shared.violations import Violations


def wrong_fields(**fields: Any) -> list[str]:
    violations = Violations()
    TuningSpec(**{"prompt": "tone", "dataset": "datasets/sha256-00", **fields}).check("spec", violations)
    try:
        violations.raise_if_any()
    except InvalidInput as error:
        return [violation.field for violation in error.violations]
    return []


@pytest.mark.parametrize(
    ("hyperparameters", "field"),
    [
        (Hyperparameters(num_virtual_tokens=0), "num_virtual_tokens"),
        (Hyperparameters(num_virtual_tokens=1025), "num_virtual_tokens"),
        (Hyperparameters(learning_rate=0.0), "learning_rate"),
        (Hyperparameters(learning_rate=math.nan), "learning_rate"),
        (Hyperparameters(max_grad_norm=math.inf), "max_grad_norm"),
        (Hyperparameters(label_smoothing=1.0), "label_smoothing"),
        (Hyperparameters(num_epochs=0.0), "num_epochs"),
        (Hyperparameters(num_epochs=1, num_steps=5), "num_epochs"),
        (Hyperparameters(seed=-1), "seed"),
        (Hyperparameters(class_weights={"a": 0.0}), "class_weights.a"),
        (Hyperparameters(init=Init(InitMethod.FROM_PROMPT)), "init.source"),
        (Hyperparameters(init=Init(InitMethod.RANDOM, source="a@1")), "init.source"),
        (Hyperparameters(init=Init(InitMethod.LABELS, text="x")), "init.text"),
        (Hyperparameters(init=Init(text="x" * 32_769)), "init.text"),
    ],
)
def test_a_hyperparameter_out_of_range_is_named(hyperparameters: Hyperparameters, field: str) -> None:
    assert wrong_fields(hyperparameters=hyperparameters) == [f"spec.hyperparameters.{field}"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": "../x"}, "prompt"),
        ({"priority": 101}, "priority"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"max_runtime_seconds": 0.0}, "max_runtime"),
        ({"publish": PublishPolicy("7")}, "publish.alias"),
        ({"publish": PublishPolicy("-", PublishGate(beat_current=True))}, "publish.gate.beat_current"),
        ({"publish": PublishPolicy(gate=PublishGate(minimum_metric=math.nan))}, "publish.gate.minimum_metric"),
        ({"publish": PublishPolicy(wait_until_served_seconds=3601)}, "publish.wait_until_served"),
        ({"sampling_defaults": Sampling(seed=1)}, "sampling_defaults.seed"),
        ({"annotations": {"": "x"}}, "annotations['']"),
        ({"annotations": {"a": "\0"}}, "annotations['a']"),
        ({"annotations": {str(n): "x" for n in range(MAX_ANNOTATIONS + 1)}}, "annotations"),
    ],
)
def test_a_field_out_of_range_is_named(fields: dict[str, Any], field: str) -> None:
    assert wrong_fields(**fields) == [f"spec.{field}"]


def test_all_that_is_wrong_is_said_together() -> None:
    assert wrong_fields(prompt="X", priority=-101, annotations={"": ""}) == [
        "spec.prompt",
        "spec.priority",
        "spec.annotations['']",
    ]


def test_a_spec_within_every_bound_is_accepted() -> None:
    assert wrong_fields(hyperparameters=Hyperparameters(warmup_steps=0, init=Init(text="x")), priority=100) == []


def test_a_dash_moves_no_alias() -> None:
    assert [PublishPolicy(alias).moved_alias for alias in ("", "default", "canary", "-")] == [
        "default",
        "default",
        "canary",
        "",
    ]
