"""What the recipe fills in, and which combinations it refuses by the field's name."""

from __future__ import annotations

from typing import Any

import pytest

from shared.errors import InvalidInput
from shared.text.template import Template
from tests.tiny_models import byte_tokenizer
from tests.trainer_service.training.models import build
from trainer_service.jobs.stored_json import from_plain
from trainer_service.training.recipe.defaults import check_init, coverage_note, fill
from trainer_service.training.spec import (
    FilledHyperparameters,
    Hyperparameters,
    Init,
    InitMethod,
    Metric,
    PrefixKind,
    TaskKind,
)

INFO, TEMPLATE, LABELS = build().info, Template(text="Review: {input}\nSentiment:"), ("positive", "negative")


def _fill(
    task: TaskKind = TaskKind.CLASSIFICATION, num_train: int = 1000, source: int | None = None, **request: Any
) -> FilledHyperparameters:
    labels = LABELS if task is TaskKind.CLASSIFICATION else ()
    parsed = from_plain(Hyperparameters, request)
    return fill(parsed, task, num_train, INFO, TEMPLATE, labels, source_virtual_tokens=source)


def test_nothing_is_left_open() -> None:
    filled = _fill()
    assert (filled.num_virtual_tokens, filled.batch_size, filled.num_steps, filled.metric) == (
        32,
        8,
        320,
        Metric.ACCURACY,
    )
    assert filled.init.method is InitMethod.TEXT
    assert "positive or negative" in filled.init.text
    assert _fill(TaskKind.GENERATION).metric is Metric.LOSS


def test_what_is_given_stays() -> None:
    given: dict[str, Any] = {
        "num_virtual_tokens": 7,
        "learning_rate": 0.5,
        "batch_size": 3,
        "warmup_steps": 0,
        "max_grad_norm": 0.0,
        "seed": 9,
    }
    filled = _fill(num_steps=11, evaluation_interval_steps=2, **given)
    assert {name: getattr(filled, name) for name in given} == given
    assert (filled.num_steps, filled.evaluation_interval_steps) == (11, 2)


@pytest.mark.parametrize(
    ("num_train", "steps"), [(5, 320), (1000, 320), (8000, 2000), (64_000, 16_000), (10**6, 16_000)]
)
def test_steps_grow_with_the_data_within_bounds(num_train: int, steps: int) -> None:
    assert _fill(num_train=num_train).num_steps == steps
    assert _fill(num_train=num_train).batch_size == min(8, num_train)


@pytest.mark.parametrize(
    ("num_train", "batch_size"), [(5, 5), (2560, 8), (5119, 8), (5120, 16), (20_480, 64), (10**6, 64)]
)
def test_batches_on_a_gpu_grow_with_the_data(num_train: int, batch_size: int) -> None:
    filled = fill(Hyperparameters(), TaskKind.GENERATION, num_train, INFO, TEMPLATE, on_gpu=True)
    assert filled.batch_size == batch_size
    assert filled.num_steps >= 320
    assert coverage_note(Hyperparameters(), filled, num_train) == ""


def test_a_training_that_does_not_see_every_example_says_so() -> None:
    filled = _fill(num_train=10**6)
    note = coverage_note(Hyperparameters(), filled, 10**6)
    assert coverage_note(Hyperparameters(num_steps=5), filled, 10**6) == ""
    assert note.startswith("16000 steps of 8 see 128000 of the 1000000 training examples (13 %)")
    assert "128000 of the 128100 training examples (99 %)" in coverage_note(Hyperparameters(), filled, 128_100)


def test_epochs_become_steps() -> None:
    assert _fill(num_train=100, num_epochs=2.5, batch_size=8).num_steps == 32


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("num_epochs", {"num_epochs": 10_000, "batch_size": 1, "num_train": 10**6}),
        ("num_virtual_tokens", {"num_virtual_tokens": 255}),
        ("num_virtual_tokens", {"num_virtual_tokens": 5, "source": 6}),
        ("batch_size", {"batch_size": 64, "num_train": 50}),
        ("warmup_steps", {"warmup_steps": 10, "num_steps": 10}),
        ("metric", {"metric": "CHRF"}),
        ("metric", {"metric": "ACCURACY", "task": TaskKind.GENERATION}),
        ("balance_classes", {"balance_classes": True, "task": TaskKind.CHAT}),
        ("class_weights", {"class_weights": {"positive": 2.0}, "task": TaskKind.GENERATION}),
        ("class_weights", {"class_weights": {"positive": 2.0}, "balance_classes": True}),
        ("class_weights['so-so']", {"class_weights": {"positive": 2.0, "so-so": 1.0}}),
        ("init.method", {"init": {"method": "LABELS"}, "task": TaskKind.GENERATION}),
        ("init.text", {"init": {"method": "TEXT", "text": " \n"}}),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(field: str, request_: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        _fill(**request_)
    assert [violation.field for violation in refused.value.violations] == [f"spec.hyperparameters.{field}"]


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(InvalidInput) as refused:
        _fill(batch_size=64, num_train=50, metric="BLEU")
    assert len(refused.value.violations) == 2


def test_from_prompt_takes_its_length_from_the_source() -> None:
    init = Init(method=InitMethod.FROM_PROMPT, source="prompts/p/versions/1")
    assert _fill(init=init, source=33).num_virtual_tokens == 33


def test_an_init_text_without_tokens_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"init\.text"):
        check_init(Init(method=InitMethod.TEXT, text=""), (), byte_tokenizer())
    check_init(Init(method=InitMethod.TEXT, text="x"), (), byte_tokenizer())


def test_demonstrations_are_keys_and_values() -> None:
    assert _fill(init={"method": "DEMONSTRATIONS"}).kind is PrefixKind.PREFIX
    with pytest.raises(InvalidInput, match=r"init\.method: DEMONSTRATIONS needs a prefix of keys and values"):
        _fill(kind="PROMPT", init={"method": "DEMONSTRATIONS"})
