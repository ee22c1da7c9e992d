"""The order in which a trainee goes through its examples."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer_service.training.trainee import batch_indices


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 1000))
def test_batches_go_through_every_example_once_an_epoch(num_examples: int, batch_size: int, seed: int) -> None:
    steps = -(-2 * num_examples // batch_size)
    picks = [pick for step in range(steps) for pick in batch_indices(seed, step, num_examples, batch_size)]
    assert sorted(picks[:num_examples]) == list(range(num_examples))
    assert sorted(picks[num_examples : 2 * num_examples]) == list(range(num_examples))
