"""Leaves of keys and values: they begin and end as the prefix, whatever its sizes, and learn in its units."""

from __future__ import annotations

import pytest
import torch

from shared.prompt.key_values import KeyValuePrefix
from trainer_service.training.recipe.leaves import KeyValueLeaves, leaves_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 0.7, 40.0, 3e30])
def test_leaves_begin_as_the_prefix(length: int, size: float) -> None:
    prefix = _prefix(length, size)
    leaves = KeyValueLeaves.of(prefix, CPU)
    assert leaves.num_virtual_tokens == length
    found = leaves.input(torch.float32)
    for layer, (key, value) in enumerate(zip(found.keys, found.values, strict=True)):
        torch.testing.assert_close(key, prefix.keys[layer], rtol=0, atol=1e-37)
        torch.testing.assert_close(value, prefix.values[layer], rtol=0, atol=1e-37)
    assert leaves.prefix().equals(prefix.rounded())
    assert leaves_of(leaves.parameters).prefix().equals(prefix.rounded())


def test_keys_and_values_move_by_the_learning_rate_times_their_size() -> None:
    prefix = _prefix(50, 0.04)
    leaves = KeyValueLeaves.of(prefix, CPU)
    with torch.no_grad():
        leaves.parameters["others"] += 0.01
    moved = leaves.input(torch.float32).detach()
    for key, value, old_key, old_value in zip(moved.keys, moved.values, prefix.keys, prefix.values, strict=True):
        assert float((key - old_key)[1:].mean()) == pytest.approx(0.01 * 2, rel=0.5)
        assert float((value - old_value)[1:].mean()) == pytest.approx(0.01 * 0.04, rel=0.5)
        assert key[0].equal(old_key[0])


def _prefix(length: int, size: float) -> KeyValuePrefix:
    """Two layers with keys of size 2 and values of another size."""
    generator = torch.Generator().manual_seed(length)
    keys, values = (
        tuple(torch.randn(length, 2, 16, generator=generator) * scale for _ in range(2)) for scale in (2.0, size)
    )
    return KeyValuePrefix(keys, values)
