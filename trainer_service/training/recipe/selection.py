"""Chooses the best of several evaluations, each on few examples.

On 128 held-out examples, an accuracy of 88 % has a standard error of 3 points, so the most accurate of eight
checkpoints is mostly the luckiest. Therefore values within one standard error of the best count as equal (the
one-standard-error rule of Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984). Among
equals, the lowest loss wins, because it includes the confidence of each answer. docs/training.md has the measurement.
"""

from __future__ import annotations

import math

from trainer_service.training.spec import Metric

Score = tuple[float, float]
"""The metric's value and the loss, both with the sign that makes higher better."""

_UNKNOWN = -1e30
"""The score of a value that is not finite: worse than every other one."""
_SHARES = frozenset({Metric.ACCURACY, Metric.MACRO_F1, Metric.EXACT_MATCH})


def score_of(metric: Metric, metrics: dict[str, float]) -> Score:
    """The score of an evaluation; values that are not finite become very low."""
    value, loss = metrics.get(metric.value.lower(), math.nan), metrics["loss"]
    return _finite(-value if metric is Metric.LOSS else value), _finite(-loss)


def slack(metric: Metric, best_value: float, num_examples: int) -> float:
    """Distance from the best that counts as equal: one standard error for (near) shares of right answers, else 0."""
    if metric not in _SHARES or num_examples < 1:
        return 0.0
    share = min(1.0, max(0.0, best_value))
    return math.sqrt(share * (1 - share) / num_examples)


def is_better(score: Score, than: Score, best_value: float, slack: float) -> bool:
    """Whether `score` beats `than`. `best_value` is the highest value so far, including these two.

    Any later score beats one of which nothing is known, so the latest checkpoint is kept until one can be measured.
    """
    return than == (_UNKNOWN, _UNKNOWN) or _key(score, best_value, slack) > _key(than, best_value, slack)


def _key(score: Score, best_value: float, slack: float) -> tuple[float, float, float]:
    value, loss = score
    return (best_value if value >= best_value - slack else value, loss, value)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _UNKNOWN
