"""Whether one model does better than another on the same held-out examples, and how sure that is. Pure.

A difference comes with a 95 % interval over the examples, which are taken as a random sample of those to come:

- Shares of right answers (accuracy, exact match): the adjusted Wald interval for paired proportions of Bonett and Price (Journal of
  Educational and Behavioral Statistics 37, 2012), which holds for few examples, too, and where one model is right on all of them.
- Everything else (loss, token accuracy, macro-F1, chrF, BLEU): the difference's jackknife standard error (Quenouille and Tukey; Efron
  and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11) times Student's t. Both models are evaluated without the same
  example each time, so what makes an example hard for both cancels.

The interval doesn't cover what another seed of the training would have given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from trainer_service.training.results import TEXT_METRICS, Results
from trainer_service.training.spec import Metric

BARE, INSTRUCTED, FEW_SHOT, CURRENT = "bare_model", "instructed_model", "few_shot_model", "current_version"
"""What a tuned prompt is compared with: the frozen model with the job's template, with an instruction, with an
instruction and examples (`baselines`), and the version that the alias names.
"""
CONFIDENCE = 0.95
MIN_EXAMPLES = 10
"""Fewer held-out examples decide nothing: the interval would rest on an assumed distribution more than on the examples.
From ten on, for differences that are as often positive as negative, at most 2.6 % of the intervals lie above 0
(simulated; 2.5 % are meant to).
"""
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_SMALL_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Student's t at 97.5 %, by degrees of freedom."""


@dataclass(frozen=True)
class Comparison:
    """`value` is the tuned prompt's, `other` the one that it is compared with. `difference` is positive where the
    prompt is better.
    """

    metric: Metric
    value: float
    other: float
    difference: float
    low: float
    high: float
    """The interval of `difference`; infinite if there are too few examples for one."""
    num_examples: int

    @property
    def beats(self) -> bool:
        """Whether the prompt is better beyond chance."""
        return self.num_examples >= MIN_EXAMPLES and self.low > 0


@dataclass(frozen=True)
class Estimate:
    """A metric on some examples and its 95 % interval; infinite if there are too few examples for one."""

    metric: Metric
    value: float
    low: float
    high: float
    num_examples: int


def estimate(metric: Metric, results: Results) -> Estimate | None:
    """Of a share of right answers by Wilson's score interval (1927), of other metrics by the jackknife. None as in
    `compare`.
    """
    shared = [index for index in range(len(results)) if metric not in TEXT_METRICS or index in results.texts]
    if not shared or not math.isfinite(value := _value(metric, results, shared)):
        return None
    count = len(shared)
    if metric in (Metric.ACCURACY, Metric.EXACT_MATCH):
        center, scale = (value + _Z**2 / (2 * count)), 1 + _Z**2 / count
        margin = _Z * math.sqrt(value * (1 - value) / count + _Z**2 / (4 * count**2))
        low, high = (center - margin) / scale, (center + margin) / scale
    else:
        margin = _jackknife_margin(_without_each(metric, results, shared), shared)
        low, high = value - margin, value + margin
    return Estimate(metric, value, low, high, count)


def compare(metric: Metric, ours: Results, theirs: Results) -> Comparison | None:
    """Both are of the same examples. None if there is nothing to compare or a number is not finite."""
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
            sum(mine and not its for mine, its in right), sum(its and not mine for mine, its in right), len(right)
        )
    else:
        mine, its = (_without_each(metric, results, shared) for results in (ours, theirs))
        margin = _jackknife_margin(lambda left_out: mine(left_out) - its(left_out), shared)
        low, high = difference - margin, difference + margin
    return Comparison(metric, value, other, difference, low, high, len(shared))


def paired_shares(only_ours: int, only_theirs: int, num_examples: int) -> tuple[float, float]:
    """The interval of a difference between two shares of right answers, from how often only one of the two was right."""
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


def _jackknife_margin(without: Callable[[int], float], shared: Sequence[int]) -> float:
    """Half the interval of a statistic, from its values without each of the examples."""
    count = len(shared)
    if count < 2:
        return math.inf
    values = [without(index) for index in shared]
    mean = math.fsum(values) / count
    error = math.sqrt((count - 1) / count * math.fsum((value - mean) ** 2 for value in values))
    return student_t(count - 1) * error


def _without_each(metric: Metric, results: Results, shared: Sequence[int]) -> Callable[[int], float]:
    """The metric over all of `shared` but one, as a function of that one."""
    if metric in (Metric.LOSS, Metric.TOKEN_ACCURACY):
        signed = [-value for value in results.log_probabilities] if metric is Metric.LOSS else results.num_correct
        total, targets = (
            math.fsum(signed[index] for index in shared),
            sum(results.num_targets[index] for index in shared),
        )
        return lambda left_out: (total - signed[left_out]) / (targets - results.num_targets[left_out])
    return lambda left_out: _value(metric, results, [index for index in shared if index != left_out])


def student_t(degrees: int) -> float:
    """The 97.5 % quantile: exact for few degrees of freedom, else the Cornish-Fisher expansion, right to three digits."""
    if degrees in _SMALL_T:
        return _SMALL_T[degrees]
    z, n = _Z, degrees
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
