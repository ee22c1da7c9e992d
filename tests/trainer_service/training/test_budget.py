"""The token budget follows the measured memory of a position and the free memory."""

from __future__ import annotations

import pytest

from shared.model.base_model import BaseModel
from tests.trainer_service.training.models import build
from trainer_service.training import budget
from trainer_service.training.attention.forward import PackedForward, PlainForward
from trainer_service.training.budget import MAX_CPU, MIN_TOKENS, bytes_per_position, measured_token_budget


def _of(base: BaseModel) -> int:
    return bytes_per_position(base, PackedForward(base))


def test_a_position_keeps_as_much_as_layers_and_width_make_it() -> None:
    small, deep, wide = build(), build(num_hidden_layers=4), build(intermediate_size=512)
    assert _of(deep) == pytest.approx(2 * _of(small), rel=0.15)
    assert _of(wide) > _of(small) + 2 * 384 * 4, "two layers keep at least one wider tensor each"
    hidden = 64 * 4
    assert 5 * 2 * hidden < _of(small) < 60 * 2 * hidden
    assert bytes_per_position(small, PlainForward(small)) > 0


def test_the_budget_follows_free_memory_between_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    base = build()
    forward = PackedForward(base)
    per_position = bytes_per_position(base, forward)

    def with_free(num_bytes: int) -> int:
        monkeypatch.setattr(budget, "free_bytes", lambda device: num_bytes)
        return measured_token_budget(base, forward)

    assert with_free(4 * 1000 * per_position) == pytest.approx(1000, abs=1), (
        "half of what is left beside logits, which take half here"
    )
    assert with_free(4 * 500 * per_position) == pytest.approx(500, abs=1)
    assert with_free(0) == MIN_TOKENS
    assert with_free(1 << 50) == MAX_CPU
