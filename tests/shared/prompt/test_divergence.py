"""The divergence of what was found from what was recorded."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.prompt.divergence import FLOAT32_NATS, divergence_nats, tied_within


def test_it_is_that_of_the_whole_distribution_where_all_tokens_are_there() -> None:
    p, q = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    expected = float((p.exp() * (p - q)).sum())
    assert divergence_nats(range(6), p.tolist(), dict(enumerate(q.tolist()))) == pytest.approx(expected, abs=1e-5)


@given(seed=st.integers(0, 10_000), scale=st.floats(0, 5), recorded=st.integers(1, 8))
def test_part_of_the_tokens_gives_a_lower_bound(seed: int, scale: float, recorded: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, generator=generator, dtype=torch.float64) * 3
    p = logits.log_softmax(-1)
    q = (logits + scale * torch.randn(50, generator=generator, dtype=torch.float64)).log_softmax(-1)
    values, tokens = p.topk(recorded)
    whole = float((p.exp() * (p - q)).sum())
    for seen in (range(50), q.topk(20).indices.tolist()):
        part = divergence_nats(tokens.tolist(), values.tolist(), {token: float(q[token]) for token in seen})
        assert 0 <= part <= whole + 1e-5


def test_nothing_found_says_nothing() -> None:
    assert divergence_nats([1], [-0.5], {}) == math.inf
    assert divergence_nats([1], [-0.5], {1: math.nan}) == math.inf


@pytest.mark.parametrize("nats", [FLOAT32_NATS, 0.01, 0.5])
def test_a_tie_is_as_wide_as_its_divergence(nats: float) -> None:
    """Two equally likely tokens, one of which loses this much log-probability."""
    moved = torch.tensor([0.0, tied_within(nats)], dtype=torch.float64).log_softmax(-1)
    assert divergence_nats([0, 1], [math.log(0.5)] * 2, dict(enumerate(moved.tolist()))) == pytest.approx(nats)
