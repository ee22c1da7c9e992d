"""What a training reports: measurements on separate examples and beside baselines, skipped examples, restarts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shared.text.template import Template
from tests.trainer_service.training.models import build
from tests.trainer_service.training.tasks import classification, generation, losses, of, run, task
from trainer_service.training.checkpoint import digest_of, digest_of_format_1
from trainer_service.training.cohort import Cohort
from trainer_service.training.events import (
    Checkpointed,
    Evaluated,
    Failed,
    Finished,
    Started,
    StepDone,
    TrainingTask,
)
from trainer_service.training.spec import Example, FilledHyperparameters, TrainingSpec
from trainer_service.training.trainee import MAX_EXCESS_SKIPS

BASE = build(max_position_embeddings=2048)
BASE = replace(BASE, info=replace(BASE.info, max_positions=2048))


def test_the_tuned_prompt_is_compared_with_the_model_with_an_instruction_and_with_examples() -> None:
    one = task(train=classification(), validation=classification(12, 100), num_steps=4)
    result = of(run(Cohort(BASE), one), Finished)[0].result
    assert list(result.comparisons) == ["bare_model", "instructed_model", "few_shot_model"]
    assert {comparison.num_examples for comparison in result.comparisons.values()} == {12}
    rivals = {
        "bare_model": result.template_metrics,
        "instructed_model": result.instructed_metrics,
        "few_shot_model": result.few_shot_metrics,
    }
    for name, metrics in rivals.items():
        assert set(metrics) == {"loss", "token_accuracy", "accuracy", "macro_f1"}
        assert result.comparisons[name].other == metrics["accuracy"]
        assert result.comparisons[name].value == result.metrics["accuracy"]
    assert result.num_shots > 3
    assert (result.num_judging, result.is_apart) == (12, True)
    assert result.estimate is not None
    assert result.estimate.low < result.metrics["accuracy"] < result.estimate.high


def test_a_rival_that_cannot_be_measured_fails_nothing() -> None:
    base = build()
    base.tokenizer.chat_template = "{{ raise_exception('no turns at all') }}"
    result = of(run(Cohort(base), task(validation=generation(6, 50), num_steps=2)), Finished)[0].result
    assert list(result.comparisons) == ["bare_model"]
    assert (result.instructed_metrics, result.few_shot_metrics, result.num_shots) == ({}, {}, 0)


def test_the_version_before_is_compared_with() -> None:
    source = of(run(Cohort(BASE), task(num_steps=2)), Finished)[0].result.prefix
    result = of(run(Cohort(BASE), replace(task(validation=generation(10, 50), num_steps=2), current=source)), Finished)[
        0
    ].result
    assert result.comparisons["current_version"].other == result.current_metrics["loss"]


@pytest.mark.parametrize(
    ("settings", "crossed"),
    [({}, True), ({"search": True, "num_steps": 16}, True), ({"early_stop_patience": 9}, False)],
)
def test_what_the_held_out_examples_decide_is_judged_by_others(settings: dict[str, Any], crossed: bool) -> None:
    validation = classification(20, 100)
    one = task(
        train=classification(),
        validation=validation,
        **{"num_steps": 8, "evaluation_interval_steps": 2, "learning_rate": 0.5, **settings},
    )
    result = of(run(Cohort(BASE), one), Finished)[0].result
    assert result.is_apart
    assert result.num_judging == (20 if crossed else 10)


def test_equal_held_out_examples_count_once() -> None:
    """Else ten copies of one example would decide a gate, with an interval of no width."""
    events = run(Cohort(BASE), task(validation=generation(1, 50) * 10 + generation(3, 60)))
    result, started = of(events, Finished)[0].result, of(events, Started)[0]
    assert result.num_judging == result.comparisons["bare_model"].num_examples == 4
    assert any(note.startswith("4 held-out examples can't tell") for note in started.notes)
    assert started.statistics.num_validation == 13


def test_a_text_metric_is_compared_on_its_own_sample() -> None:
    one = task(validation=generation(12, 50), num_steps=4, metric="CHRF", evaluation_interval_steps=2)
    result = of(run(Cohort(BASE), one), Finished)[0].result
    assert result.comparisons["few_shot_model"].num_examples == 12
    assert result.metrics["chrf_examples"] == 12


def _poisoned(num_poisoned: int, num_sound: int) -> tuple[Example, ...]:
    poisoned = tuple(Example(line=100 + index, input=f"thing ~ {index}", output="no") for index in range(num_poisoned))
    return (*generation(num_sound), *poisoned)


@pytest.mark.parametrize("token_budget", [None, 64])
def test_a_step_that_is_not_finite_is_skipped_and_counted(token_budget: int | None) -> None:
    """Also if a step is computed in several parts."""
    base = build()
    (poison,) = base.tokenizer("~", add_special_tokens=False)["input_ids"]
    base.embedding_table[poison] = float("nan")
    one = task(train=_poisoned(1, 19), num_steps=20, batch_size=2)
    events = run(Cohort(base, token_budget=token_budget, checkpoint_interval_seconds=0), one)
    steps, result = of(events, StepDone), of(events, Finished)[0].result
    skipped = [event for event in steps if event.num_skipped]
    assert len(steps) == 20
    assert len(skipped) == steps[-1].total_skipped == result.num_skipped == 2, "one for each pass over the data"
    assert all(math.isnan(event.loss) for event in skipped)
    assert all(math.isfinite(event.loss) for event in steps if not event.num_skipped)
    assert torch.isfinite(result.prefix.tensors()["prompt_embeddings"]).all()
    checkpoint = next(event for event in of(events, Checkpointed) if event.step == 15)
    resumed = run(Cohort(base, token_budget=token_budget), replace(one, checkpoint=checkpoint.data))
    assert of(resumed, Finished)[0].result.num_skipped == 2
    torch.testing.assert_close(
        of(resumed, Finished)[0].result.prefix.tensors()["prompt_embeddings"],
        result.prefix.tensors()["prompt_embeddings"],
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(("num_steps", "failing_step"), [(40, MAX_EXCESS_SKIPS), (4, 4)])
def test_steps_that_are_never_finite_fail_the_job(num_steps: int, failing_step: int) -> None:
    base = build()
    (poison,) = base.tokenizer("~", add_special_tokens=False)["input_ids"]
    base.embedding_table[poison] = float("nan")
    events = run(Cohort(base), task(train=_poisoned(8, 0), num_steps=num_steps))
    failed = of(events, Failed)[0]
    assert (failed.code, failed.retryable) == ("NAN_LOSS", False)
    assert "not finite" in failed.message
    assert f"{failing_step} " in failed.message
    assert len(losses(events)) <= failing_step


def test_a_field_that_is_added_to_the_settings_leaves_checkpoints_usable() -> None:
    class NewerHyperparameters(FilledHyperparameters):
        momentum: float = 0.0

    class NewerSpec(TrainingSpec):
        hyperparameters: NewerHyperparameters

    one = task()
    stored = json.loads(one.spec.model_dump_json())
    newer = NewerSpec.model_validate(stored)
    assert digest_of(newer, one.train, ()) == digest_of(one.spec, one.train, ())
    assert digest_of(newer.model_copy(update={"labels": ("a",)}), one.train, ()) != digest_of(one.spec, one.train, ())


def test_a_checkpoint_of_the_release_before_is_continued_from() -> None:
    """Format 1: a digest of all fields of the stored spec, without those added later."""
    one = task(validation=generation(6, 50), evaluation_interval_steps=5)
    stored = json.loads(one.spec.model_dump_json())
    del stored["hyperparameters"]["class_weights"]  # as if that release had not known it
    spec = TrainingSpec.model_validate(stored)
    data = of(run(Cohort(BASE, checkpoint_interval_seconds=0), one), Checkpointed)[9].data
    length = int.from_bytes(data[:8], "little")
    state = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
    for name in ("template_results", "folds", "tried", "best_candidate"):
        del state[name]
    for trainee in state["trainees"]:
        for name in ("index", "num_skipped", "excess_skips"):
            del trainee[name]
    old = save(
        load(data),
        {"state": json.dumps({**state, "format": 1, "digest": digest_of_format_1(spec, one.train, one.validation)})},
    )
    events = run(Cohort(BASE), replace(one, spec=spec, checkpoint=old, attempt=2))
    started, result = of(events, Started)[0], of(events, Finished)[0].result
    assert (started.step, started.restart_reason) == (of(events, StepDone)[0].step - 1, "")
    assert started.step > 0
    assert not result.is_apart, "which half chose what before the upgrade is not known"
    assert result.num_judging == 6


def test_losses_of_another_kind_do_not_compete() -> None:
    """Format 2: labels weighed by their tokens, so a loss of that release may be smaller than any of this one."""
    one = task(train=classification(), validation=classification(6, 50), evaluation_interval_steps=5, metric="LOSS")
    assert [continues_as_best(one, saved_format, [0.0, 0.0]) for saved_format in (3, 2)] == [False, True]


def continues_as_best(one: TrainingTask, saved_format: int, score: list[float]) -> bool:
    """Whether the first evaluation after a checkpoint of this format, with this best score, is the best so far."""
    data = of(run(Cohort(BASE, checkpoint_interval_seconds=0), one), Checkpointed)[9].data
    state = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["state"])
    state["best_score"] = score
    state["history"][0] |= {"score": score, "metrics": {"loss": -score[1]}}
    old = save(load(data), {"state": json.dumps({**state, "format": saved_format})})
    events = run(Cohort(BASE), replace(one, checkpoint=old, attempt=2))
    assert of(events, Started)[0].step > 0
    return next(event for event in of(events, Evaluated) if event.step).is_best


@pytest.mark.parametrize(("metric", "is_best"), [("BLEU", True), ("CHRF", False)])
def test_scores_of_texts_of_another_kind_do_not_compete(metric: str, is_best: bool) -> None:
    """Format 3: BLEU of short answers was 0 however right they were. chrF is the same as before."""
    one = task(validation=generation(6, 50), evaluation_interval_steps=5, metric=metric)
    assert [continues_as_best(one, saved_format, [100.0, 0.0]) for saved_format in (4, 3)] == [False, is_best]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"validation": generation(5, 50)}, "splits or reads the job's examples differently"),
        ({"spec": task(seed=9).spec}, "reads the job's settings differently"),
        ({"spec": task(seed=9).spec, "train": generation(20)}, "of another job"),
        ({"checkpoint": b"\xff" * 64}, "can't be read"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_reported(change: dict[str, Any], reason: str) -> None:
    data = of(run(Cohort(BASE, checkpoint_interval_seconds=0), task(num_steps=4)), Checkpointed)[2].data
    started = of(run(Cohort(BASE), replace(task(num_steps=4), **{"checkpoint": data, **change})), Started)[0]
    assert started.step == 0
    assert reason in started.restart_reason


def test_each_evaluation_is_reported_once() -> None:
    one = task(validation=generation(6, 50), num_steps=6, evaluation_interval_steps=2)
    assert [event.step for event in of(run(Cohort(BASE), one), Evaluated)] == [0, 2, 4, 6]


def test_few_examples_are_reported() -> None:
    one = task(train=generation(8), validation=generation(2, 50), num_steps=120, batch_size=4)
    many, few = of(run(Cohort(BASE), replace(one, spec=one.spec)), Started)[0].notes
    assert "60 times over 8 examples" in many
    assert few == "2 held-out examples can't tell which model is better: at least 10 are needed, and 100 are wise"
    assert of(run(Cohort(BASE), task(num_steps=2, validation=generation(10, 50))), Started)[0].notes == ()


def test_labels_without_a_training_example_are_reported() -> None:
    """Of a label set that the caller gave, or because their examples were dropped."""
    one = task(train=classification(), validation=classification(12, 100), num_steps=2)
    labels = (*one.spec.labels, "never", 'with, "quotes"')
    one = replace(one, spec=one.spec.model_copy(update={"labels": labels}))
    [note] = [note for note in of(run(Cohort(BASE), one), Started)[0].notes if "label" in note]
    assert note == (
        "2 labels have no training example, so that the prompt can't learn to choose them: 'never', 'with, \"quotes\"'"
    )


def test_characters_that_the_tokenizer_does_not_know_are_reported() -> None:
    words = ["<pad>", "<end>", "<unk>", "In", "Out", ":", "thing", "of", "no", *map(str, range(200))]
    known = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    train = tuple(replace(one, output="nein") if one.line % 8 == 0 else one for one in generation())
    model = replace(BASE, tokenizer=tokenizer)
    [note] = of(run(Cohort(model), task(num_steps=2, train=train, validation=generation(10, 50))), Started)[0].notes
    assert note.startswith("3 examples have characters for which the model has no token")
    german = task(num_steps=2, train=train, validation=generation(10, 50))
    template = Template(text="Frage : {input}\nOut:")
    german = replace(german, spec=german.spec.model_copy(update={"template": template}))
    of_template, of_examples = of(run(Cohort(model), german), Started)[0].notes
    assert of_template.startswith("the template has characters for which the model has no token")
    assert of_examples == note
    [byte_level] = of(run(Cohort(BASE), task(num_steps=2, train=train, validation=generation(10, 50))), Started)
    assert byte_level.notes == ()


def test_a_held_out_example_that_the_model_cannot_compute_costs_only_its_numbers() -> None:
    """The job ends with the latest checkpoint, and resumes from any."""
    base = build()
    (poison,) = base.tokenizer("~", add_special_tokens=False)["input_ids"]
    base.embedding_table[poison] = float("nan")
    validation = (*generation(5, 50), *_poisoned(1, 0))
    one = task(validation=validation, num_steps=4, evaluation_interval_steps=2)
    events = run(Cohort(base, checkpoint_interval_seconds=0), one)
    result = of(events, Finished)[0].result
    assert (result.best_step, result.score_stability, result.estimate) == (4, 0.0, None)
    assert math.isnan(result.metrics["loss"])
    assert not result.comparisons
    checkpoint = next(event for event in of(events, Checkpointed) if event.step == 3)
    resumed = of(run(Cohort(base), replace(one, checkpoint=checkpoint.data)), Started)[0]
    assert (resumed.step, resumed.restart_reason) == (3, "")
