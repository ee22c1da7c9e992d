"""Compares two models on the same held-out examples, with a confidence interval. Pure.

A difference has a 95 % interval over the examples, which are treated as a random sample of future inputs:

- Shares of right answers (accuracy, exact match): the adjusted Wald interval for paired proportions of Bonett and Price
  (Journal of Educational and Behavioral Statistics 37, 2012). It is valid for few examples, and also if one model is
  right on all of them.
- All other metrics (loss, token accuracy, macro-F1, chrF, BLEU): the jackknife standard error of the difference
  (Quenouille and Tukey; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11) times Student's t.
  Each replicate leaves the same example out for both models, so difficulty that both share cancels. If no replicate
  differs, as for an accuracy of 100 %, the width is that of Wilson's interval (1927) for a share that is right on all.
  With fewer than six examples there is no interval: they may agree by chance, and not even a sign test could tell.

The interval doesn't include the variation between training seeds. With fewer than `MIN_EXAMPLES` examples nothing is
decided: the interval would depend more on the assumed distribution than on the examples. From ten on, for differences
that are as often positive as negative, at most 3.1 % of the intervals lie above 0 (the target is 2.5 %). For shares,
this is exact by enumeration, and holds if at most one model is right on up to 80 % of the examples. If exactly one is
right on nearly all of 10 to 16 examples, up to 5.5 % lie above 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from shared.values.enums import TEXT_METRICS
from shared.values.report import MIN_EXAMPLES as MIN_EXAMPLES
from trainer_service.training.results import Results
from trainer_service.training.spec import Metric

BARE, INSTRUCTED, FEW_SHOT, CURRENT = "bare_model", "instructed_model", "few_shot_model", "current_version"
"""The rivals of a tuned prompt: the frozen model with the job's template, with an instruction, with an instruction and
examples (`baselines`), and the alias's current version.
"""
CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_SHARES = (Metric.ACCURACY, Metric.EXACT_MATCH, Metric.TOKEN_ACCURACY, Metric.MACRO_F1)
MOST: Mapping[Metric, float] = {**dict.fromkeys(_SHARES, 1.0), Metric.CHRF: 100.0, Metric.BLEU: 100.0}
"""The highest value of a metric that has one."""
_MIN_FOR_INTERVAL = 6
"""The fewest examples from which a spread is estimated. Of five differences, all have the same sign with a probability
of 6 % although the models are equal; of six, with 3 %.
"""


@dataclass(frozen=True)
class Comparison:
    """A tuned prompt's `value` and a rival's (`other`). `difference` is positive if the prompt is better."""

    metric: Metric
    value: float
    other: float
    difference: float
    low: float
    high: float
    """Bounds of the interval of `difference`; infinite with too few examples."""
    num_examples: int

    @property
    def beats(self) -> bool:
        """Whether the prompt is better beyond chance."""
        return self.num_examples >= MIN_EXAMPLES and self.low > 0


@dataclass(frozen=True)
class Estimate:
    """A metric on some examples and its 95 % interval, which is infinite with too few examples."""

    metric: Metric
    value: float
    low: float
    high: float
    num_examples: int


def estimate(metric: Metric, results: Results) -> Estimate | None:
    """A metric with its interval: Wilson's score interval (1927) for shares of right answers, else the jackknife.

    None under the conditions of `compare`.
    """
    shared = [index for index in range(len(results)) if metric not in TEXT_METRICS or index in results.texts]
    if not shared or not math.isfinite(value := _value(metric, results, shared)):
        return None
    count = len(shared)
    if metric in (Metric.ACCURACY, Metric.EXACT_MATCH):
        center, scale = (value + _Z**2 / (2 * count)), 1 + _Z**2 / count
        margin = _Z * math.sqrt(value * (1 - value) / count + _Z**2 / (4 * count**2))
        # rounding would leave 1e-17 instead of 0, or less than 1
        low = (center - margin) / scale if value else 0.0
        high = (center + margin) / scale if value < 1 else 1.0
    else:
        margin = _margin(metric, _without_each(metric, results, shared), shared)
        low, high = value - margin, value + margin
        if math.isfinite(margin):
            low, high = max(0.0, low), min(MOST.get(metric, math.inf), high)
    return Estimate(metric, value, low, high, count)


def compare(metric: Metric, ours: Results, theirs: Results) -> Comparison | None:
    """Compare two results on the same examples. None if no example has both results or a value is not finite."""
    shared = [
        index
        for index in range(len(ours))
        if metric not in TEXT_METRICS or (index in ours.texts and index in theirs.texts)
    ]
    if not shared:
        return None
    value, other = (_value(metric, results, shared) for results in (ours, theirs))
    if not (math.isfinite(value) and math.isfinite(other)):
        return None
    sign = -1.0 if metric is Metric.LOSS else 1.0
    difference = sign * (value - other)
    if metric in (Metric.ACCURACY, Metric.EXACT_MATCH):
        right = [(_is_right(metric, ours, index), _is_right(metric, theirs, index)) for index in shared]
        low, high = paired_shares(
            sum(mine and not other for mine, other in right),
            sum(other and not mine for mine, other in right),
            len(right),
        )
    else:
        own, rival = (_without_each(metric, results, shared) for results in (ours, theirs))
        margin = _margin(metric, lambda left_out: own(left_out) - rival(left_out), shared)
        low, high = difference - margin, difference + margin
    return Comparison(metric, value, other, difference, low, high, len(shared))


def paired_shares(only_ours: int, only_theirs: int, num_examples: int) -> tuple[float, float]:
    """The interval of the difference between two shares of right answers, from the counts where only one was right."""
    ours, theirs = ((count + 1) / (num_examples + 2) for count in (only_ours, only_theirs))
    margin = _Z * math.sqrt((ours + theirs - (ours - theirs) ** 2) / (num_examples + 2))
    return max(-1.0, ours - theirs - margin), min(1.0, ours - theirs + margin)


def _value(metric: Metric, results: Results, indices: Sequence[int]) -> float:
    return results.metrics(metric, indices)[metric.value.lower()]


def _is_right(metric: Metric, results: Results, index: int) -> bool:
    if metric is Metric.ACCURACY:
        return results.wanted[index] == results.chosen[index]
    answer, wanted = results.texts[index]
    return answer == wanted


def _margin(metric: Metric, without: Callable[[int], float], shared: Sequence[int]) -> float:
    """Half the width of a statistic's interval. Where all examples agree, that of a share which is right on all."""
    margin, most = _jackknife_margin(without, shared), MOST.get(metric, 0.0)
    return margin if margin > most * 1e-9 else most * _Z**2 / (len(shared) + _Z**2)


def _jackknife_margin(without: Callable[[int], float], shared: Sequence[int]) -> float:
    """Half the width of a statistic's interval, from its values with each example left out."""
    count = len(shared)
    if count < _MIN_FOR_INTERVAL:
        return math.inf
    values = [without(index) for index in shared]
    mean = math.fsum(values) / count
    error = math.sqrt((count - 1) / count * math.fsum((value - mean) ** 2 for value in values))
    return student_t(count - 1) * error


def _without_each(metric: Metric, results: Results, shared: Sequence[int]) -> Callable[[int], float]:
    """The metric over all of `shared` except one example, as a function of that example."""
    if metric in (Metric.LOSS, Metric.TOKEN_ACCURACY):
        values, weights = results.losses if metric is Metric.LOSS else (results.num_correct, results.num_targets)
        total, weight = math.fsum(values[index] for index in shared), sum(weights[index] for index in shared)
        return lambda left_out: (total - values[left_out]) / (weight - weights[left_out])
    return lambda left_out: _value(metric, results, [index for index in shared if index != left_out])


def student_t(degrees: int) -> float:
    """The 97.5 % quantile by the Cornish-Fisher expansion: three digits from 5 degrees of freedom on."""
    z, n = _Z, degrees
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
