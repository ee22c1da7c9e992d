"""The compiled attention of packed batches compared with plain torch: values, gradients, layouts, threads."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import torch

from shared.kernels import library
from shared.prompt.prefix import PrefixInput
from trainer_service.training.attention.packing import Layout, Row, Segment, pack
from trainer_service.training.attention.prefix_attention import AttentionRule, NativePrefixAttention, PrefixAttention

pytestmark = pytest.mark.skipif(library.load() is None, reason="no compiled kernels on this machine")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@torch.no_grad()
def _near(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm()) <= tolerance * float(other.norm())


def _layout(rng: random.Random) -> Layout:
    """Two soft prompts, of which one has rows that share a beginning and one a row longer than a block, and rows
    without any.
    """
    rows = [
        [Row(tuple(rng.randrange(99) for _ in range(length)), (7,)) for length in lengths]
        for lengths in ((3, 60, 1, 20, 45), (130,), (9, 9))
    ]
    preamble = tuple(range(20))
    rows[0] = [Row((*preamble, *row.input_ids), row.target_ids) for row in rows[0]]
    segments = [
        Segment(PrefixInput(torch.zeros(7, 1)), rows[0]),
        Segment(PrefixInput(torch.zeros(33, 1)), rows[1]),
        Segment(None, rows[2]),
    ]
    return pack(segments, torch.device("cpu")).layout


@DTYPES
@pytest.mark.parametrize("width", [16, 64, 80])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (4, 4), (100, 2)])
@pytest.mark.parametrize("window", [None, 11])
def test_attention(dtype: torch.dtype, width: int, heads: int, kv_heads: int, window: int | None) -> None:
    torch.manual_seed(0)
    layout, rule = _layout(random.Random(0)), AttentionRule(0.3, window, None, None)
    query, key, value = (
        torch.randn(layout.num_tokens, count, width).to(dtype).transpose(0, 1) for count in (heads, kv_heads, kv_heads)
    )
    assert NativePrefixAttention.fits(query, value, rule)
    mine, written = (
        [tensor.detach().requires_grad_(True) for tensor in tensors]
        for tensors in ([query, key, value], [query.float(), key.float(), value.float()])
    )
    found, expected = NativePrefixAttention.apply(*mine, layout, rule), PrefixAttention.apply(*written, layout, rule)
    upstream = torch.randn(expected.shape).to(dtype)
    gradients = torch.autograd.grad(found, mine, upstream), torch.autograd.grad(expected, written, upstream.float())
    assert {tensor.dtype for tensor in (found, *gradients[0])} == {dtype}
    _near((found, *gradients[0]), (expected, *gradients[1]), 3e-6 if dtype == torch.float32 else 1e-2)


def test_attention_takes_the_same_steps_with_any_number_of_threads() -> None:
    torch.manual_seed(0)
    layout, rule, threads = _layout(random.Random(1)), AttentionRule(0.3, None, None, None), torch.get_num_threads()
    inputs = [torch.randn(count, layout.num_tokens, 32, requires_grad=True) for count in (6, 3, 3)]
    found = []
    try:
        for some in (1, 2, 3):
            torch.set_num_threads(some)
            out = NativePrefixAttention.apply(*inputs, layout, rule)
            found.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_attention_of_scores_far_apart() -> None:
    layout, rule = _layout(random.Random(2)), AttentionRule(1.0, None, None, None)
    torch.manual_seed(0)
    inputs = [(torch.randn(count, layout.num_tokens, 16) * 30).requires_grad_(True) for count in (2, 1, 1)]
    results = []
    for kind in (NativePrefixAttention, PrefixAttention):
        out = kind.apply(*inputs, layout, rule)
        results.append([out, *torch.autograd.grad(out.sum(), inputs)])
    ours, theirs = results
    _near(ours, theirs, 1e-3)  # of scores in the thousands, float32 keeps four digits behind the point


def test_what_is_no_number_stays_in_its_segment() -> None:
    layout, rule = _layout(random.Random(3)), AttentionRule(0.3, None, None, None)
    inputs = [torch.randn(count, layout.num_tokens, 16) for count in (2, 1, 1)]
    for tensor in inputs:
        tensor[:, list(layout.shared[0])] = float("nan")
    for tensor in inputs:
        tensor.requires_grad_(True)
    out = NativePrefixAttention.apply(*inputs, layout, rule)
    gradients = torch.autograd.grad(out.sum(), inputs)
    touched = [*layout.shared[0], *(position for row in layout.rows[0] for position in row)]
    others = [position for position in range(layout.num_tokens) if position not in set(touched)]
    assert out[touched].isnan().all()
    for tensor in (out.transpose(0, 1), *gradients):
        assert tensor[:, others].isfinite().all()


def test_what_does_not_fit_is_left_to_torch() -> None:
    value = torch.ones(1, 2, 32)
    assert NativePrefixAttention.fits(value, value, AttentionRule(1.0, 3, None, None))
    assert not NativePrefixAttention.fits(value, value, AttentionRule(1.0, None, 30.0, None))
    assert not NativePrefixAttention.fits(value, value, AttentionRule(1.0, None, None, torch.ones(1)))
    assert not NativePrefixAttention.fits(value, value[..., :16], AttentionRule(1.0, None, None, None))
