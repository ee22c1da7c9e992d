"""Metrics of a classification."""

from __future__ import annotations

import pytest

from trainer_service.training.comparison import compare
from trainer_service.training.results import Results, classification_metrics, text_metric
from trainer_service.training.spec import Metric


def test_f1_counts_only_labels_that_occur() -> None:
    metrics = classification_metrics([0, 0, 1, 1], [0, 1, 1, 1], num_labels=5)
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)


def test_a_label_of_many_tokens_counts_as_much_as_one_of_one() -> None:
    """As in training. An output's tokens all count the same."""
    texts = Results(log_probabilities=(-1.0, -9.0), num_targets=(1, 3), num_correct=(1, 1))
    labels = texts.model_copy(update={"wanted": (0, 1), "chosen": (0, 1)})
    assert texts.metrics(Metric.LOSS)["loss"] == 10 / 4
    assert labels.metrics(Metric.LOSS)["loss"] == (1 / 1 + 9 / 3) / 2
    comparisons = []
    for per_token, num_targets in (((-1.0, -9.0), (1, 3)), ((-1.0, -3.0), (1, 1))):
        six = {"num_targets": num_targets * 3, "num_correct": (1,) * 6, "wanted": (0, 1) * 3, "chosen": (0, 1) * 3}
        ours, theirs = (Results(log_probabilities=(first, per_token[1]) * 3, **six) for first in (-1.0, -2.0))
        comparisons.append(compare(Metric.LOSS, ours, theirs))
    long, short = comparisons
    assert long is not None
    assert (long.difference, long.low > -1, long.high < 2) == (0.5, True, True)
    assert long == short


def test_a_text_metric_counts_the_examples_with_a_text() -> None:
    """The standard error within which checkpoints count as equal depends on it."""
    results = Results(log_probabilities=(-1.0,) * 4, num_targets=(1,) * 4, num_correct=(1,) * 4, texts={1: ("a", "a")})
    assert (results.num_measured(Metric.EXACT_MATCH), results.num_measured(Metric.LOSS)) == (1, 4)
    assert (results.num_measured(Metric.EXACT_MATCH, [0, 2]), results.num_measured(Metric.LOSS, [0, 2])) == (0, 2)


@pytest.mark.parametrize("metric", [Metric.BLEU, Metric.CHRF, Metric.EXACT_MATCH])
@pytest.mark.parametrize("texts", [("yes", "no"), ("a red lamp",), ("红灯", "灯"), ("7",), ("a\n\nb",)])
def test_right_answers_have_the_full_score_however_short_they_are(metric: Metric, texts: tuple[str, ...]) -> None:
    assert text_metric(metric, [(text, text) for text in texts]) == (1 if metric is Metric.EXACT_MATCH else 100)
    assert text_metric(metric, [("", text) for text in texts]) == 0


def test_nearly_right_answers_without_spaces_have_a_part_of_the_score() -> None:
    wanted, answer = "这是一个红色的大灯。", "这是一个红色的灯。"
    assert 60 < text_metric(Metric.BLEU, [(answer, wanted)]) < 90
    spaced = text_metric(Metric.BLEU, [("this is a red lamp", "this is a big red lamp")])
    assert 30 < spaced < 60, "and words are counted elsewhere"


def test_an_answer_that_is_cut_short_is_worse_than_one_with_a_wrong_word() -> None:
    wanted = "a red lamp here"
    cut, wrong = (text_metric(Metric.BLEU, [(answer, wanted)] * 5) for answer in ("a red lamp", "a red lamp there"))
    assert cut < wrong < 100
