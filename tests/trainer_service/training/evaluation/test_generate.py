"""Which held-out examples text metrics look at."""

from __future__ import annotations

from trainer_service.training.evaluation.generate import MAX_EXAMPLES, sampled


def test_text_metrics_look_at_examples_from_all_parts_of_a_sorted_file() -> None:
    """The first 64 of 1,000 sorted examples would judge a prompt by one kind of them."""
    picks = sampled(1000)
    assert len(set(picks)) == MAX_EXAMPLES
    assert {pick * 8 // 1000 for pick in picks} == set(range(8))
    assert picks == sampled(1000), "the same ones each time, so that two evaluations can be compared"


def test_few_examples_are_all_looked_at() -> None:
    assert sampled(MAX_EXAMPLES) == list(range(MAX_EXAMPLES))
