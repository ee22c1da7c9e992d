"""The compiled kernels against the same written out in torch: values, gradients, any layout and number of threads, and wrong input."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F

from tests.trainer_service.training.models import build
from trainer_service.training import native_kernels
from trainer_service.training.attention.packing import Layout, Row, Segment, pack
from trainer_service.training.attention.prefix_attention import NativePrefixAttention, PrefixAttention, Rule
from trainer_service.training.frozen_mlp import FrozenGatedMLP
from trainer_service.training.frozen_norm import NativeRMSNorm
from trainer_service.training.rotary import Rotate, replace_rotary

pytestmark = pytest.mark.skipif(native_kernels.load() is None, reason="no compiled kernels on this machine")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def _agree(native: Callable[..., torch.Tensor], written: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
    """Value and gradients, `written` being computed in float64."""
    mine = [tensor.detach().requires_grad_(True) for tensor in inputs]
    exact = [tensor.detach().double().requires_grad_(True) for tensor in inputs]
    found, expected = native(*mine), written(*exact)
    upstream = torch.randn(expected.shape).to(found.dtype)
    gradients = torch.autograd.grad(found, mine, upstream), torch.autograd.grad(expected, exact, upstream.double())
    _near((found, *gradients[0]), (expected, *gradients[1]), 2e-6 if found.dtype == torch.float32 else 1e-2)


@torch.no_grad()
def _near(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm()) <= tolerance * float(other.norm())


@DTYPES
@pytest.mark.parametrize("shape", [(1, 16), (7, 64), (2, 5, 576)])
def test_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(dtype) * 3, torch.randn(shape[-1])
    _agree(
        lambda x: NativeRMSNorm.apply(x, weight, 1e-5),
        lambda x: F.rms_norm(x, (shape[-1],), weight.double(), 1e-5),
        x,
    )


@DTYPES
def test_gated_mlp(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate, up, down = (torch.randn(shape).to(dtype) * 0.3 for shape in ((96, 32), (96, 32), (32, 96)))
    _agree(
        lambda x: FrozenGatedMLP.apply(x, gate, up, down),
        lambda x: F.linear(F.silu(F.linear(x, gate.double())) * F.linear(x, up.double()), down.double()),
        torch.randn(2, 9, 32).to(dtype),
    )


def test_a_gate_may_be_as_large_as_it_likes() -> None:
    gate = torch.tensor([-1e30, -200.0, -90.0, -0.0, 0.0, 90.0, 200.0, 1e30] * 2)
    found = native_kernels.swiglu(gate, torch.ones(16))
    torch.testing.assert_close(found, F.silu(gate), rtol=1e-6, atol=1e-30)
    dgate, dup = native_kernels.swiglu_backward(torch.ones(16), gate, torch.ones(16))
    torch.testing.assert_close(dgate, torch.autograd.functional.jacobian(lambda x: F.silu(x).sum(), gate), rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(dup, F.silu(gate), rtol=1e-6, atol=1e-30)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


@DTYPES
@pytest.mark.parametrize("width", [32, 64, 128])
def test_rotary(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    cos, sin = (torch.randn(5, width).to(dtype) for _ in range(2))
    x = torch.randn(5, 3, width).to(dtype).transpose(0, 1)
    _agree(lambda x: Rotate.apply(x, cos, sin), lambda x: _rotated(x, cos.double(), sin.double()), x)


def _layout(rng: random.Random) -> Layout:
    """Two soft prompts, of which one has rows that share a beginning and one a row longer than a block, and rows without any."""
    rows = [
        [Row(tuple(rng.randrange(99) for _ in range(length)), (7,)) for length in lengths]
        for lengths in ((3, 60, 1, 20, 45), (130,), (9, 9))
    ]
    preamble = tuple(range(20))
    rows[0] = [Row((*preamble, *row.input_ids), row.target_ids) for row in rows[0]]
    segments = [Segment(torch.zeros(7, 1), rows[0]), Segment(torch.zeros(33, 1), rows[1]), Segment(None, rows[2])]
    return pack(segments, torch.device("cpu")).layout


@DTYPES
@pytest.mark.parametrize("width", [16, 64, 80])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (4, 4), (100, 2)])
@pytest.mark.parametrize("window", [None, 11])
def test_attention(dtype: torch.dtype, width: int, heads: int, kv_heads: int, window: int | None) -> None:
    torch.manual_seed(0)
    layout, rule = _layout(random.Random(0)), Rule(0.3, window, None, None)
    query, key, value = (torch.randn(layout.num_tokens, count, width).to(dtype).transpose(0, 1) for count in (heads, kv_heads, kv_heads))
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
    layout, rule, threads = _layout(random.Random(1)), Rule(0.3, None, None, None), torch.get_num_threads()
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
    layout, rule = _layout(random.Random(2)), Rule(1.0, None, None, None)
    torch.manual_seed(0)
    inputs = [(torch.randn(count, layout.num_tokens, 16) * 30).requires_grad_(True) for count in (2, 1, 1)]
    results = []
    for kind in (NativePrefixAttention, PrefixAttention):
        out = kind.apply(*inputs, layout, rule)
        results.append([out, *torch.autograd.grad(out.sum(), inputs)])
    _near(*results, 1e-3)  # of scores in the thousands, float32 keeps four digits behind the point


def test_what_is_no_number_stays_in_its_segment() -> None:
    layout, rule = _layout(random.Random(3)), Rule(0.3, None, None, None)
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


def test_memory_is_not_misread() -> None:
    rows, wide = torch.ones(3, 32), torch.ones(3, 64)
    layout = _layout(random.Random(0))
    query = torch.ones(2, layout.num_tokens, 16)
    grad, sums = query.transpose(0, 1), torch.ones(layout.num_tokens, 2)
    wrong: list[Callable[[], object]] = [
        lambda: native_kernels.norm(wide, torch.ones(32), 1e-5),
        lambda: native_kernels.norm(rows.double(), torch.ones(32), 1e-5),
        lambda: native_kernels.norm(torch.ones(3, 31), torch.ones(31), 1e-5),
        lambda: native_kernels.norm_backward(wide, rows, torch.ones(32), torch.ones(3)),
        lambda: native_kernels.norm_backward(rows, rows, torch.ones(32), torch.ones(2)),
        lambda: native_kernels.swiglu(rows, wide),
        lambda: native_kernels.swiglu(rows, rows.bfloat16()),
        lambda: native_kernels.swiglu_backward(wide, rows, rows),
        lambda: native_kernels.rotate(torch.ones(2, 3, 32), rows, wide),
        lambda: native_kernels.rotate(torch.ones(2, 3, 16), torch.ones(3, 16), torch.ones(3, 16)),
        lambda: native_kernels.attention(query, query[:, 1:], query[:, 1:], layout.spans, 1.0, None),
        lambda: native_kernels.attention(query[:, 1:], query[:, 1:], query[:, 1:], layout.spans, 1.0, None),
        lambda: native_kernels.attention(torch.cat([query, query[:1]]), query, query, layout.spans, 1.0, None),
        lambda: native_kernels.attention(query, query.bfloat16(), query, layout.spans, 1.0, None),
        lambda: native_kernels.attention_backward(query, query, query, query, sums, layout.spans, 1.0, None),
        lambda: native_kernels.attention_backward(grad, query, query, query, sums[1:], layout.spans, 1.0, None),
        lambda: native_kernels.attention_backward(grad, query, query.bfloat16(), query, sums, layout.spans, 1.0, None),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match="wanted"):
            call()


@pytest.mark.parametrize("width", [20, 0])
def test_what_does_not_fit_is_left_to_torch(width: int) -> None:
    assert not native_kernels.takes(torch.ones(2, width), width)
    assert not native_kernels.takes(torch.ones(2, 32, dtype=torch.float16), 32)
    value = torch.ones(1, 2, 32)
    assert NativePrefixAttention.fits(value, value, Rule(1.0, 3, None, None))
    assert not NativePrefixAttention.fits(value, value, Rule(1.0, None, 30.0, None))
    assert not NativePrefixAttention.fits(value, value, Rule(1.0, None, None, torch.ones(1)))
    assert not NativePrefixAttention.fits(value, value[..., :16], Rule(1.0, None, None, None))


@pytest.mark.parametrize(
    ("architecture", "expected"), [("llama", 2), ("qwen3", 2), ("gemma3_text", 6), ("phi3", 2), ("gpt_neox", 2), ("gpt2", 0), ("cohere", 0)]
)
def test_the_usual_rotation_is_replaced_once(architecture: str, expected: int) -> None:
    """Cohere's turns pairs of neighbours."""
    model = build(architecture, **({} if architecture == "gpt2" else {"head_dim": 32})).model
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert len(replace_rotary(model)) == expected
        assert not replace_rotary(model)
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)
        several = torch.tensor([[5, 9, 40, 7], [1, 2, 3, 4]])
        torch.testing.assert_close(model(input_ids=several).logits[:1], before, rtol=1e-4, atol=1e-5)
