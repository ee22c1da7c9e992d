"""What counts as the best of noisy evaluations."""

from __future__ import annotations

import math

import pytest

from trainer_service.training.recipe.selection import Score, is_better, score_of, slack
from trainer_service.training.spec import Metric


def best_of(scores: list[Score], metric: Metric, num_examples: int) -> int:
    """The index of the best score, as a training finds it: each one is compared with the best of those before."""
    best = 0
    for index, score in enumerate(scores):
        top = max(value for value, _ in scores[: index + 1])
        if is_better(score, scores[best], top, slack(metric, top, num_examples)):
            best = index
    return best


def test_a_lucky_evaluation_does_not_beat_a_lower_loss() -> None:
    lucky, sound = (
        (0.8906, -0.137),
        (0.8828, -0.125),
    )  # of seed 0 in the quality benchmark: 88.3 and 90.0 % on a thousand test examples
    assert best_of([lucky, sound], Metric.ACCURACY, 128) == 1
    assert is_better(sound, lucky, 0.8906, slack(Metric.ACCURACY, 0.8906, 128))


def test_what_is_clearly_more_accurate_wins_whatever_its_loss() -> None:
    assert best_of([(0.70, -0.1), (0.90, -0.9), (0.60, -0.05)], Metric.ACCURACY, 128) == 1
    assert best_of([(0.60, -0.05), (0.70, -0.1)], Metric.ACCURACY, 128) == 1


def test_with_many_examples_small_differences_count() -> None:
    assert best_of([(0.8828, -0.125), (0.8906, -0.137)], Metric.ACCURACY, 100_000) == 1


@pytest.mark.parametrize("metric", [Metric.LOSS, Metric.CHRF, Metric.BLEU])
def test_metrics_that_are_no_shares_have_no_slack(metric: Metric) -> None:
    assert slack(metric, 0.5, 10) == 0.0
    assert best_of([(0.50, -1.0), (0.51, -2.0)], metric, 10) == 1


def test_a_standard_error() -> None:
    assert slack(Metric.ACCURACY, 0.88, 128) == pytest.approx(0.0287, abs=1e-4)
    assert slack(Metric.ACCURACY, 1.0, 128) == slack(Metric.ACCURACY, 0.5, 0) == 0.0


def test_scores_that_are_not_finite_come_last() -> None:
    assert score_of(Metric.LOSS, {"loss": math.nan}) == (-1e30, -1e30)
    endless = score_of(Metric.ACCURACY, {"accuracy": 0.5, "loss": math.inf})
    assert best_of([endless, (0.5, -3.0)], Metric.ACCURACY, 50) == 1


def test_the_latest_of_scores_that_are_not_known_is_kept() -> None:
    unknown = score_of(Metric.LOSS, {"loss": math.nan})
    assert best_of([unknown, unknown, unknown], Metric.LOSS, 50) == 2
    assert best_of([unknown, (-1.0, -1.0), unknown], Metric.LOSS, 50) == 1
    by_accuracy = [score_of(Metric.ACCURACY, {"accuracy": value, "loss": math.nan}) for value in (0.80, 0.82, 0.81)]
    assert best_of(by_accuracy, Metric.ACCURACY, 50) == 1
