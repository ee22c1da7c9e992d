"""Comparisons of the trained prompt with its rivals, and candidates of a search: as records and as sentences. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from shared.values.results import Comparison as ComparisonRecord
from shared.values.results import SearchCandidate
from trainer_service.training.comparison import BARE, CURRENT, FEW_SHOT, INSTRUCTED, MIN_EXAMPLES, Comparison, Estimate
from trainer_service.training.spec import Metric

NAMES: Mapping[str, str] = {
    BARE: "the bare model",
    INSTRUCTED: "the model with an instruction",
    FEW_SHOT: "the model with an instruction and examples in its input",
    CURRENT: "the current version",
}


def records(comparisons: Mapping[str, Comparison]) -> tuple[ComparisonRecord, ...]:
    """The comparisons as records, in the same order."""
    return tuple(_record(rival, comparison) for rival, comparison in comparisons.items())


def outcome_of(comparison: Comparison, rival: str) -> str:
    """A sentence on the outcome of a comparison, with its numbers."""
    name = comparison.metric.value.lower()
    value, other = told_apart(comparison.value, comparison.other)
    head = f"{name} {value} {{}} {other} of {NAMES[rival]}"
    if comparison.num_examples < MIN_EXAMPLES:
        few = f"{comparison.num_examples} held-out examples are too few to tell; at least {MIN_EXAMPLES} are needed"
        return head.format("is not known to beat") + f": {few}"
    by = f"{'better' if comparison.difference > 0 else 'worse'} by {abs(comparison.difference):.3g}"
    if not comparison.difference or math.isnan(comparison.difference):
        by = "can't be compared" if comparison.difference else "no difference"
    numbers = f"{by} ({interval(comparison.low, comparison.high)}, {comparison.num_examples} held-out examples)"
    if comparison.beats:
        return head.format("beats") + f": {numbers}"
    return head.format("does not beat") + f"{' beyond chance' if comparison.difference > 0 else ''}: {numbers}"


def estimate_text(metric: Metric, estimate: Estimate, value: str) -> str:
    """A metric with its interval and number of examples, as text. `value`: the metric's text."""
    basis = f"{interval(estimate.low, estimate.high)}, {estimate.num_examples} held-out examples"
    return f"{metric.value.lower()} {value} ({basis})"


def told_apart(value: float, other: float) -> tuple[str, str]:
    """Two numbers as text with four digits, or with up to nine if they are needed to show that they differ."""
    written = [(f"{value:.{digits}g}", f"{other:.{digits}g}") for digits in range(4, 10)]
    return next((pair for pair in written if pair[0] != pair[1]), written[0])


def interval(low: float, high: float) -> str:
    """A 95 % interval as text; "no interval" if an end is not finite."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return f"95 % interval {round(low, 9) + 0.0:.3g} to {round(high, 9) + 0.0:.3g}"  # neither 1e-17 nor -0


def verdict(comparisons: Mapping[str, Comparison]) -> str:
    """A sentence that compares the tuned prompt with other ways to use the frozen model; empty if none was measured."""
    rivals = {rival: comparison for rival, comparison in comparisons.items() if rival != CURRENT}
    if not rivals:
        return ""
    num_examples = min(comparison.num_examples for comparison in rivals.values())
    if num_examples < MIN_EXAMPLES:
        shown = [f"{NAMES[rival]} ({_pair(comparison)})" for rival, comparison in rivals.items()]
        few = f"{num_examples} held-out example{' is' if num_examples == 1 else 's are'} too few to tell"
        return f"{few} whether the prompt is better than {_listed(shown)}: at least {MIN_EXAMPLES} are needed"
    beaten = [NAMES[rival] for rival, comparison in rivals.items() if comparison.beats]
    missed = [outcome_of(comparison, rival) for rival, comparison in rivals.items() if not comparison.beats]
    first = f"beats {_listed(beaten)}" if beaten else "beats none of the other ways to use the model"
    return "; ".join([f"the prompt {first}", *missed])


def search_note(found: Sequence[SearchCandidate]) -> str:
    """A sentence on the candidate that a search chose; empty without a search."""
    chosen = next((one for one in found if one.chosen), None)
    if chosen is None:
        return ""
    values = f"learning rate {chosen.learning_rate:g} and init {chosen.init_method}"
    return f"the search chose {values} of {len(found)} candidates"


def as_json(record: ComparisonRecord | SearchCandidate) -> dict[str, Any]:
    """A record as strict JSON for a manifest: tuples are lists, and numbers that are not finite are left out."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(record).items()}
    return {
        name: value
        for name, value in plain.items()
        if value is not None and (not isinstance(value, float) or math.isfinite(value))
    }


def _record(rival: str, comparison: Comparison) -> ComparisonRecord:
    has_interval = math.isfinite(comparison.low) and math.isfinite(comparison.high)
    return ComparisonRecord(
        rival=rival,
        metric=comparison.metric.value.lower(),
        value=comparison.value,
        rival_value=comparison.other,
        difference=comparison.difference,
        low=comparison.low if has_interval else None,
        high=comparison.high if has_interval else None,
        num_examples=comparison.num_examples,
        beats=comparison.beats,
    )


def _pair(comparison: Comparison) -> str:
    return f"{comparison.metric.value.lower()} {' against '.join(told_apart(comparison.value, comparison.other))}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
