"""A current version of another base model: the answers that its job kept, beside those of the new prompt."""

from __future__ import annotations

import pytest

from shared.values.report import HeldOutAnswer, HeldOutAnswers, ModelAnswer
from trainer_service.publish.predecessor import Predecessor, compare_kept
from trainer_service.training.comparison import Comparison
from trainer_service.training.spec import Metric

JOB = "tuningJobs/old"
COUNT = 24


def answers(*given: ModelAnswer, first: int = 1) -> HeldOutAnswers:
    """To one example on each line; `given` are repeated. The expected answers are `yes` and `no` in turn."""
    return HeldOutAnswers(
        tuple(
            HeldOutAnswer(line, f"input {line}", ("yes", "no")[line % 2], given[line % len(given)])
            for line in range(first, first + COUNT)
        )
    )


def compared(metric: Metric, ours: HeldOutAnswers, theirs: HeldOutAnswers) -> Comparison:
    found = compare_kept(metric, ours, Predecessor(JOB, theirs))
    assert isinstance(found, Comparison), found
    return found


def test_losses_are_those_of_whole_answers_whatever_the_tokens() -> None:
    """The old tokenizer cuts each answer into 4 tokens of 0.5 nats, the new one into 2 of 1.0: the same probability."""
    old, new = answers(ModelAnswer(loss=0.5, num_targets=4)), answers(ModelAnswer(loss=1.0, num_targets=2))
    equal = compared(Metric.LOSS, new, old)
    assert (equal.value, equal.other, equal.beats) == (1.0, 1.0, False)
    better = compared(Metric.LOSS, answers(ModelAnswer(loss=0.9, num_targets=2)), old)
    assert (better.other, better.beats, better.num_examples) == (1.0, True, COUNT)


@pytest.mark.parametrize("metric", [Metric.ACCURACY, Metric.MACRO_F1, Metric.EXACT_MATCH, Metric.CHRF])
def test_labels_and_texts(metric: Metric) -> None:
    right, half = answers(ModelAnswer("yes"), ModelAnswer("no")), answers(ModelAnswer("yes"))
    ahead, behind = compared(metric, right, half), compared(metric, half, right)
    assert ahead.beats
    assert not behind.beats
    assert ahead.value == behind.other > ahead.other


def test_only_examples_that_both_held_out_count() -> None:
    ours = answers(ModelAnswer(loss=0.1, num_targets=2), first=13)
    assert compared(Metric.LOSS, ours, answers(ModelAnswer(loss=0.9, num_targets=2))).num_examples == 12


@pytest.mark.parametrize(
    ("metric", "predecessor", "why"),
    [
        (Metric.LOSS, Predecessor("", None), "no job of this trainer trained it"),
        (Metric.LOSS, Predecessor(JOB, None), f"{JOB} keeps no answers"),
        (Metric.LOSS, Predecessor(JOB, answers(ModelAnswer(loss=1.0))), "could be compared by loss"),  # earlier release
        (Metric.LOSS, Predecessor(JOB, answers(ModelAnswer(loss=float("inf"), num_targets=2))), "by loss"),
        (Metric.LOSS, Predecessor(JOB, answers(ModelAnswer(loss=1.0, num_targets=2), first=100)), "these held-out"),
        (Metric.CHRF, Predecessor(JOB, answers(ModelAnswer(loss=1.0, num_targets=2))), "by chrf"),
        (Metric.TOKEN_ACCURACY, Predecessor(JOB, answers(ModelAnswer("yes", 1.0, True, 2))), "counts tokens"),
    ],
)
def test_what_cannot_be_compared_says_why(metric: Metric, predecessor: Predecessor, why: str) -> None:
    found = compare_kept(metric, answers(ModelAnswer("yes", 1.0, True, 2)), predecessor)
    assert isinstance(found, str)
    assert found.startswith("it belongs to another base model, and ")
    assert why in found
