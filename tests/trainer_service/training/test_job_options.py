"""Options of one job: where its training starts, when it stops, what it reports, and how its examples weigh."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from shared.prompt.prefix import Prefix
from shared.prompt.soft_prompt import SoftPrompt
from tests.trainer_service.training.models import build
from tests.trainer_service.training.tasks import classification, generation, losses, matrix, of, run, task
from trainer_service.training.cohort import Cohort
from trainer_service.training.events import (
    Checkpointed,
    Evaluated,
    Finished,
    Started,
    StepDone,
    TrainingTask,
)
from trainer_service.training.spec import Example, InitMethod, Reparameterisation, TooLong

BASE = build()


def test_from_prompt_starts_at_the_source_and_labels_at_the_label_words() -> None:
    source = of(run(Cohort(BASE), task()), Finished)[0].result.prefix
    init = {"method": "FROM_PROMPT", "source_version": "prompts/p/versions/1"}
    moved = matrix(run(Cohort(BASE), replace(task(init=init, num_steps=1, learning_rate=1e-6), source=source)))
    torch.testing.assert_close(moved, source.input(torch.float32).embeddings, rtol=0, atol=1e-5)
    labelled = task(train=classification(), init={"method": "LABELS"}, num_steps=1, learning_rate=1e-6)
    ids = BASE.tokenizer(" good", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(matrix(run(Cohort(BASE), labelled))[:5], BASE.embedding_table[ids], rtol=0, atol=1e-5)


def _from(source: Prefix, **hyperparameters: Any) -> TrainingTask:
    init = {"method": "FROM_PROMPT", "source_version": "prompts/p/versions/1"}
    return replace(
        task(init=init, validation=generation(6, 50), evaluation_interval_steps=5, **hyperparameters), source=source
    )


@pytest.mark.parametrize("reparameterisation", ["NONE", "RESIDUAL"])
def test_a_training_that_only_worsens_its_source_publishes_the_source(reparameterisation: str) -> None:
    source = of(run(Cohort(BASE), task(num_steps=40, learning_rate=0.03)), Finished)[0].result.prefix
    worse = _from(source, learning_rate=9.0, reparameterisation=reparameterisation)
    events = run(Cohort(BASE, checkpoint_interval_seconds=0), worse)
    evaluated = of(events, Evaluated)
    assert [(event.step, event.is_best) for event in evaluated] == [
        (0, True),
        (5, False),
        (10, False),
        (15, False),
        (20, False),
    ]
    result = of(events, Finished)[0].result
    assert result.best_step == 0
    torch.testing.assert_close(
        result.prefix.tensors()["prompt_embeddings"], source.input(torch.float32).embeddings, rtol=0, atol=0
    )
    assert result.metrics == pytest.approx(evaluated[0].metrics)
    resumed = run(Cohort(BASE), replace(worse, checkpoint=of(events, Checkpointed)[7].data))
    assert of(resumed, Finished)[0].result.best_step == 0
    assert of(resumed, Evaluated)[0].step > 0, "what was evaluated is not evaluated again"


def test_a_training_that_improves_its_source_publishes_the_improvement() -> None:
    source = SoftPrompt(BASE.embedding_table[:6].clone())
    result = of(run(Cohort(BASE), _from(source, learning_rate=0.03)), Finished)[0].result
    assert result.best_step > 0


def test_residual_reparameterisation_is_folded_into_a_plainmatrix() -> None:
    events = run(Cohort(BASE), task(reparameterisation=Reparameterisation.RESIDUAL, learning_rate=0.02))
    assert matrix(events).shape == (6, 64)
    assert losses(events)[-1] < losses(events)[0]


def test_early_stop_ends_after_evaluations_without_improvement() -> None:
    one = task(
        validation=generation(6, 50),
        num_steps=400,
        learning_rate=3.0,
        evaluation_interval_steps=1,
        early_stop_patience=3,
    )
    result = of(run(Cohort(BASE), one), Finished)[0].result
    assert result.num_steps == result.best_step + 3


def test_a_search_keeps_one_candidate_and_survives_those_that_explode() -> None:
    one = task(train=classification(), validation=classification(9, 60), num_steps=64, learning_rate=1.0, search=True)
    events = run(Cohort(BASE), one)
    result = of(events, Finished)[0].result
    assert [event.num_examples for event in of(events, StepDone)][::2] == [24, 12, 8, 8, *[4] * 28]
    assert result.init is not None
    assert result.init.method in (InitMethod.TEXT, InitMethod.LABELS)
    assert result.learning_rate in (0.4, 1.0, 3.0)


def test_a_generation_metric_decides_the_best_checkpoint() -> None:
    one = task(validation=generation(3, 50), num_steps=10, metric="CHRF", evaluation_interval_steps=5)
    events = run(Cohort(BASE), one)
    assert all(0 <= event.metrics["chrf"] <= 100 for event in of(events, Evaluated))
    assert "chrf" in of(events, Finished)[0].result.bare_metrics


def test_classes_count_as_they_are_weighed() -> None:
    rare = tuple(Example(line=i + 1, input=f"review {i}", label="bad" if i == 5 else "good") for i in range(8))
    weighed = {}
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "balanced": {"balance_classes": True},
        "weighted": {"class_weights": {"bad": 3.0}},
    }
    for name, option in options.items():
        one = task(train=rare, num_steps=1, batch_size=8, **option)
        weighed[name] = losses(run(Cohort(BASE), one))[0]
    by_label = []
    for label in ("good", "bad"):
        some = tuple(example for example in rare if example.label == label)
        one = task(train=some, num_steps=1, batch_size=len(some))
        by_label.append(losses(run(Cohort(BASE), one))[0])
    good, bad = by_label
    weights = {"plain": (7.0, 1.0), "balanced": (4.0, 4.0), "weighted": (7.0, 3.0)}
    for name, (w_good, w_bad) in weights.items():
        assert weighed[name] == pytest.approx((w_good * good + w_bad * bad) / (w_good + w_bad), rel=1e-4)


def test_a_rare_class_weighs_as_much_alone_in_its_batch() -> None:
    """Each batch divided by its own weights would give a class that is alone in it the weight of any other."""
    rare = tuple(Example(line=i + 1, input=f"review {i}", label="bad" if i == 5 else "good") for i in range(8))
    settings: dict[str, Any] = {
        "num_steps": 8,
        "batch_size": 1,
        "learning_rate": 1e-9,
        "schedule": "CONSTANT",
        "warmup_steps": 0,
    }
    options: list[dict[str, Any]] = [{}, {"balance_classes": True}]
    plain, balanced = (losses(run(Cohort(BASE), task(train=rare, **settings, **option))) for option in options)
    ratios = sorted(weighed / unweighed for weighed, unweighed in zip(balanced, plain, strict=True))
    assert ratios == pytest.approx([8 / (2 * 7)] * 7 + [8 / 2], rel=1e-3)


def test_held_out_examples_that_stand_in_the_training_data_are_counted() -> None:
    events = run(Cohort(BASE), task(train=generation(12), validation=generation(6, 9), num_steps=2))
    assert of(events, Started)[0].statistics.num_overlapping == 3


def test_held_out_examples_that_are_dropped_do_not_count_as_repeated() -> None:
    long = replace(generation(1, 9)[0], output="no " * 100)
    one = task(train=generation(12), validation=(long, *generation(6, 10)), num_steps=2)
    one = replace(one, spec=one.spec.model_copy(update={"too_long": TooLong.DROP}))
    for prepared in (one, Cohort(BASE).prepare(one)):
        statistics = of(run(Cohort(BASE), prepared), Started)[0].statistics
        assert (statistics.num_validation, statistics.num_dropped, statistics.num_overlapping) == (6, 1, 2)


def test_a_search_that_only_makes_its_source_worse_chooses_nothing() -> None:
    source = of(run(Cohort(BASE), task(num_steps=40, learning_rate=0.03)), Finished)[0].result.prefix
    searched = _from(source, learning_rate=9.0, search=True, num_steps=4)
    result = of(run(Cohort(BASE), searched), Finished)[0].result
    assert result.best_step == 0
    assert [one.chosen for one in result.tried] == [False] * 3
