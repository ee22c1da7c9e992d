"""The kernel and the code in torch choose the same token, always.

`tests/shared/kernels/test_instruction_sets.py` compares the kernel between instruction sets.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch

from inference_service.engine.run.token_choice import NOT_FINITE, NOTHING_LEFT, Draw, choose, choose_in_torch
from shared.kernels import library, sampling
from shared.kernels.sampling import Change
from tests.host_waits import HostWaits

needs_kernels = pytest.mark.skipif(library.load() is None, reason="no compiled kernels on this machine")


def _logits(kind: str, rows: int, vocab: int, generator: torch.Generator) -> torch.Tensor:
    normal = torch.randn(rows, vocab, generator=generator)
    if kind == "flat":
        return normal * 2
    if kind == "peaked":
        ranks = torch.rand(rows, vocab, generator=generator).argsort(dim=-1) + 1
        return -2.0 * ranks.float().log() + normal * 0.3
    if kind == "ties":
        return (normal * 2).round()
    if kind == "close":  # differences at float32's last bits
        return 10 + normal * 1e-5
    if kind == "equal":
        return torch.zeros(rows, vocab)
    assert kind == "masked"
    return (normal * 3).masked_fill_(torch.rand(rows, vocab, generator=generator) < 0.9, -math.inf)


def _draws(rows: int, vocab: int, rng: random.Random) -> list[Draw]:
    return [
        Draw(
            temperature=rng.choice([0.0, 1e-6, 0.3, 0.8, 1.0, 10.0]),
            top_k=rng.choice([0, 0, 1, 7, 50, 1024, vocab // 2, vocab, 1 << 30]),
            top_p=rng.choice([1.0, 1.0, 1e-9, 0.3, 0.8, 0.95, 0.999]),
            min_p=rng.choice([0.0, 0.0, 1e-4, 0.1, 0.5, 1.0]),
            number=rng.choice([0.0, rng.random(), rng.random(), 1 - 2.0**-53]),
        )
        for _ in range(rows)
    ]


def _by_kernel(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    known = [tuple(getattr(draw, name) for name in sampling.DRAW) for draw in draws]
    return sampling.choose_tokens(logits.unbind(0), known)


@needs_kernels
@pytest.mark.parametrize("kind", ["flat", "peaked", "ties", "close", "equal", "masked"])
@pytest.mark.parametrize("vocab", [1, 5, 17, 1000, 20011])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_chooses_the_token_that_torch_chooses(kind: str, vocab: int, dtype: torch.dtype) -> None:
    generator, rng = torch.Generator().manual_seed(vocab), random.Random(f"{kind} {vocab}")
    rows = 12
    for _ in range(3):
        logits, draws = _logits(kind, rows, vocab, generator).to(dtype), _draws(rows, vocab, rng)
        expected = choose_in_torch(logits.float(), draws)
        assert _by_kernel(logits, draws) == expected, draws
        assert [_by_kernel(logits[i : i + 1], draws[i : i + 1])[0] for i in range(rows)] == expected


@needs_kernels
def test_a_large_vocabulary() -> None:
    logits = _logits("flat", 4, 262_144, torch.Generator().manual_seed(0)).bfloat16()
    draws = [Draw(0.8, number=0.7), Draw(0.8, top_p=0.95, number=0.7), Draw(1.0, top_k=50, number=0.3), Draw(0.0)]
    assert _by_kernel(logits, draws) == choose_in_torch(logits.float(), draws)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_kernels), False])
def test_tokens_are_as_frequent_as_they_are_probable(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly spread numbers reach each token in proportion to its probability, computed in float64."""
    if not compiled:
        monkeypatch.setattr(library, "load", lambda: None)
    logits, count = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 2, 4000
    exact = torch.softmax(logits.double() / 0.8, dim=-1)
    found = choose([logits] * count, [Draw(0.8, number=(i + 0.5) / count) for i in range(count)])
    shares = torch.bincount(torch.tensor(found), minlength=40).double() / count
    assert (shares - exact).abs().max() <= 1 / count + 1e-6
    kept = exact.sort(descending=True).values[:5]
    found = choose([logits] * count, [Draw(0.8, top_k=5, number=(i + 0.5) / count) for i in range(count)])
    shares = (torch.bincount(torch.tensor(found), minlength=40).double() / count).sort(descending=True).values[:5]
    assert (shares - kept / kept.sum()).abs().max() <= 1 / count + 1e-6


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize("draw", [Draw(0.0), Draw(1.0, number=0.5), Draw(1.0, top_p=0.9, number=0.5)])
def test_rows_without_a_choice(compiled: bool, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(library, "load", lambda: None)
    logits = torch.zeros(4, 33)
    logits[0, 7], logits[1, 20], logits[2] = math.nan, math.inf, -math.inf
    logits[3, 5] = 1e30
    assert choose(logits.unbind(0), [draw] * 4) == [NOT_FINITE, NOT_FINITE, NOTHING_LEFT, 5]
    assert choose([], []) == []


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [5, 1003])
def test_changed_logits(compiled: bool, dtype: torch.dtype, vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Impossible tokens have logits of negative infinity. A change hides no logit that is not finite."""
    if not compiled:
        monkeypatch.setattr(library, "load", lambda: None)
    generator, rng = torch.Generator().manual_seed(vocab), random.Random(vocab)
    logits = _logits("peaked", 6, vocab, generator).to(dtype)
    allowed, draws = torch.rand(6, vocab, generator=generator) < 0.5, _draws(6, vocab, rng)
    allowed[0], allowed[1], allowed[5] = False, True, True
    ids, values = torch.tensor([vocab - 1, 2]), torch.tensor([30.0, -3.0])
    changes = {i: Change(allowed[i], *((ids, values) if i % 2 else (None, None))) for i in range(5)}
    expected = logits.float()
    expected[1::4, ids] = values
    expected[3, ids] = values
    expected[5] = logits[5].float()
    tokens = choose_in_torch(expected.masked_fill(~allowed, -math.inf), draws)
    assert choose(logits.unbind(0), draws, changes) == tokens
    assert tokens[0] == NOTHING_LEFT
    for index, wrong in enumerate((math.nan, math.inf)):
        logits[2 + index, vocab - 1], allowed[2 + index, vocab - 1] = wrong, False
    assert choose(logits.unbind(0), draws, changes)[2:4] == [NOT_FINITE] * 2


@needs_kernels
def test_rows_that_the_kernel_would_misread_are_refused() -> None:
    draw = (0, 1.0, 0.0, 0.5, 1.0)
    for rows in ([torch.zeros(8), torch.zeros(9)], [torch.zeros(8).half()], [torch.zeros(0)], [torch.zeros(2, 8)]):
        with pytest.raises(ValueError, match="expected rows of"):
            sampling.choose_tokens(rows, [draw] * len(rows))
    with pytest.raises(ValueError, match="expected 1 draws, got 2"):
        sampling.choose_tokens([torch.zeros(8)], [draw] * 2)
    one = torch.ones(1)
    wrong = [
        Change(torch.ones(7, dtype=torch.bool)),
        Change(torch.ones(8)),
        Change(None, torch.tensor([8]), one),
        Change(None, torch.tensor([-1]), one),
        Change(None, torch.tensor([1, 2]), one),
        Change(None, torch.tensor([1]), one.half()),
    ]
    for change in wrong:
        with pytest.raises(ValueError, match=r"expected (a mask of 8 tokens|as many logits|token ids below 8)"):
            sampling.choose_tokens([torch.zeros(8)], [draw], {0: change})
    strided = torch.arange(20.0).view(10, 2)[:, 0]
    assert sampling.choose_tokens([strided], [(0, 1.0, 0.0, 0.0, 0.0)]) == [9]


def test_choices_in_torch_wait_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the tokens are read back; the rare row that needs a whole sort waits again."""
    num_read, tolist = 0, torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> object:
        nonlocal num_read
        num_read += 1
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    logits = _logits("peaked", 5, 5000, torch.Generator().manual_seed(0))
    logits[4, 7] = math.nan
    draws = [Draw(0.0), Draw(0.8, number=0.5), Draw(0.8, top_k=20, number=0.5), Draw(0.8, top_p=0.9, number=0.5)]
    with HostWaits() as waits:
        chosen = choose_in_torch(logits, [*draws, Draw(0.8, top_k=20, number=0.5)])
    assert chosen[4] == NOT_FINITE
    assert waits.found == []
    assert num_read == 1
