"""Confidence intervals of differences: correct coverage, wide with few examples, independent of the metric's form."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

import pytest

from trainer_service.training.comparison import MIN_EXAMPLES, compare, estimate, paired_shares, student_t
from trainer_service.training.results import Results
from trainer_service.training.spec import Metric


def losses(values: Sequence[float]) -> Results:
    """One target token an example."""
    ones = (1,) * len(values)
    return Results(log_probabilities=tuple(-value for value in values), num_targets=ones, num_correct=ones)


def labels(right: Sequence[bool]) -> Results:
    count = len(right)
    return Results(
        log_probabilities=(-1.0,) * count,
        num_targets=(1,) * count,
        num_correct=(1,) * count,
        wanted=(1,) * count,
        chosen=tuple(int(one) for one in right),
    )


def test_a_mean_of_paired_differences_has_students_interval() -> None:
    ours, theirs = (
        [1.0, 1.2, 0.8, 1.1, 0.9, 1.0, 1.3, 0.7, 1.0, 1.1],
        [1.5, 1.4, 1.5, 1.6, 1.2, 1.6, 1.7, 1.4, 1.3, 1.8],
    )
    found = compare(Metric.LOSS, losses(ours), losses(theirs))
    assert found is not None
    differences = [other - mine for mine, other in zip(ours, theirs, strict=True)]
    margin = 2.2622 * statistics.stdev(differences) / math.sqrt(10)  # t of 9 degrees of freedom, from a table
    assert found.difference == pytest.approx(statistics.mean(differences))
    assert (found.low, found.high) == pytest.approx((found.difference - margin, found.difference + margin), rel=1e-3)
    assert found.beats


def test_students_t_is_that_of_the_tables() -> None:
    table = {5: 2.571, 9: 2.262, 19: 2.093, 30: 2.042, 120: 1.980}
    assert {degrees: student_t(degrees) for degrees in table} == pytest.approx(table, abs=5e-3)


def test_a_share_that_is_right_on_every_example_is_not_certain() -> None:
    low, high = paired_shares(5, 0, 5)
    assert 0 < low < 0.5 < high <= 1
    perfect = estimate(Metric.ACCURACY, labels([True] * 12))
    assert perfect is not None
    assert perfect.low == pytest.approx(0.757, abs=1e-3)  # Wilson's, for 12 of 12
    assert perfect.high == pytest.approx(1.0)
    lucky = compare(Metric.ACCURACY, labels([True] * 20), labels([True] * 16 + [False] * 4))
    assert lucky is not None
    assert not lucky.beats, "an exact test of four against none gives p = 0.06 at best"


def test_a_score_that_is_the_same_for_every_example_is_not_certain() -> None:
    perfect = labels([True] * 12)
    for metric in (Metric.TOKEN_ACCURACY, Metric.MACRO_F1):
        found, same = estimate(metric, perfect), compare(metric, perfect, perfect)
        assert found is not None
        assert (found.value, found.low, found.high) == pytest.approx((1, 0.757, 1), abs=1e-3)
        assert same is not None
        assert same.low < 0 < same.high
    written = perfect.model_copy(update={"texts": dict.fromkeys(range(12), ("a right answer", "a right answer"))})
    chrf = estimate(Metric.CHRF, written)
    assert chrf is not None
    assert (chrf.value, chrf.low, chrf.high) == pytest.approx((100, 75.7, 100), abs=0.1)
    loss = estimate(Metric.LOSS, losses([0.0] * 11 + [1.0]))
    assert loss is not None
    assert loss.low == 0, "no loss is below 0"


def test_few_examples_prove_nothing() -> None:
    few = compare(Metric.LOSS, losses([1.0] * (MIN_EXAMPLES - 1)), losses([2.0] * (MIN_EXAMPLES - 1)))
    assert few is not None
    assert few.low > 0
    assert not few.beats
    one = compare(Metric.LOSS, losses([1.0]), losses([2.0]))
    assert one is not None
    assert (one.low, one.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_few_losses_that_happen_to_agree_have_no_interval(count: int) -> None:
    ours, theirs = [1.0 + 1e-6 * index for index in range(count)], [2.0] * count
    found, own = compare(Metric.LOSS, losses(ours), losses(theirs)), estimate(Metric.LOSS, losses(ours))
    assert found is not None
    assert own is not None
    assert (found.low, found.high, own.low, own.high) == (-math.inf, math.inf, -math.inf, math.inf)
    assert not found.beats
    share = compare(Metric.ACCURACY, labels([True] * count), labels([False] * count))
    assert share is not None
    assert math.isfinite(share.low), "the interval of a share is valid for few examples"


@pytest.mark.parametrize("metric", [Metric.LOSS, Metric.ACCURACY, Metric.MACRO_F1])
def test_equal_models_seldom_beat_each_other(metric: Metric) -> None:
    """A plain `<` would accept half of them."""
    draw = random.Random(0)
    beaten, trials = 0, 400
    for _ in range(trials):
        if metric is Metric.LOSS:
            ours, theirs = (losses([math.exp(draw.gauss(0, 1)) for _ in range(12)]) for _ in range(2))
        else:
            wanted = tuple(draw.randrange(2) for _ in range(30))
            ours, theirs = (
                labels([True] * 30).model_copy(
                    update={
                        "wanted": wanted,
                        "chosen": tuple(one if draw.random() < 0.75 else 1 - one for one in wanted),
                    }
                )
                for _ in range(2)
            )
        found = compare(metric, ours, theirs)
        assert found is not None
        beaten += found.beats
    assert beaten / trials < 0.05


def test_texts_are_compared_where_both_have_one() -> None:
    good = losses([1.0] * 30).model_copy(
        update={"texts": {index: (f"answer {index}", f"answer {index}") for index in range(24)}}
    )
    bad = losses([1.0] * 30).model_copy(
        update={"texts": {index: ("none of it", f"answer {index}") for index in range(6, 30)}}
    )
    for metric in (Metric.CHRF, Metric.EXACT_MATCH):
        found = compare(metric, good, bad)
        assert found is not None
        assert (found.num_examples, found.beats) == (18, True)


def test_what_is_not_finite_is_not_compared() -> None:
    assert compare(Metric.LOSS, losses([1.0, math.nan]), losses([1.0, 1.0])) is None
    assert estimate(Metric.LOSS, losses([math.inf, 1.0])) is None
    assert compare(Metric.CHRF, losses([1.0]), losses([1.0])) is None


@pytest.mark.parametrize("count", [5, 7, 9, 20])
def test_the_interval_of_a_share_ends_at_0_and_1(count: int) -> None:
    none, every = (estimate(Metric.ACCURACY, labels([right] * count)) for right in (False, True))
    assert none is not None
    assert every is not None
    assert (none.low, every.high) == (0.0, 1.0)
