"""The training kernels compared with plain torch: values, gradients, and wrong input."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F

from shared.kernels import library, ops
from shared.kernels.gated_mlp import FrozenGatedMLP
from shared.kernels.norm import CompiledRMSNorm
from shared.kernels.rotary import Rotate, replace_rotary
from tests.trainer_service.training.models import build

pytestmark = pytest.mark.skipif(library.load() is None, reason="no compiled kernels on this machine")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def _agree(native: Callable[..., torch.Tensor], written: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
    """Compare value and gradients with those of `written`, which is computed in float64."""
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
        lambda x: CompiledRMSNorm.apply(x, weight, 1e-5),
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
    found = ops.swiglu(gate, torch.ones(16))
    torch.testing.assert_close(found, F.silu(gate), rtol=1e-6, atol=1e-30)
    dgate, dup = ops.swiglu_backward(torch.ones(16), gate, torch.ones(16))
    torch.testing.assert_close(
        dgate, torch.autograd.functional.jacobian(lambda x: F.silu(x).sum(), gate), rtol=1e-6, atol=1e-30
    )
    torch.testing.assert_close(dup, F.silu(gate), rtol=1e-6, atol=1e-30)


def test_swiglu_of_the_halves_of_one_product() -> None:
    both = torch.randn(1, 5, 64)
    gate, up = both.split(32, -1)
    torch.testing.assert_close(ops.swiglu(gate, up), F.silu(gate) * up)
    torch.testing.assert_close(ops.swiglu(gate, up.contiguous()), F.silu(gate) * up)


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


def test_memory_is_not_misread() -> None:
    rows, wide = torch.ones(3, 32), torch.ones(3, 64)
    spans = ops.Spans(torch.tensor([[0, 2, 0, 1, 0]]), torch.tensor([[2, 5]]), num_tokens=7, num_partial=2)
    query = torch.ones(2, 7, 16)
    grad, sums = query.transpose(0, 1), torch.ones(7, 2)
    wrong: list[Callable[[], object]] = [
        lambda: ops.rms_norm(wide, torch.ones(32), 1e-5),
        lambda: ops.rms_norm(rows.double(), torch.ones(32), 1e-5),
        lambda: ops.rms_norm(torch.ones(3, 31), torch.ones(31), 1e-5),
        lambda: ops.rms_norm_backward(wide, rows, torch.ones(32), torch.ones(3)),
        lambda: ops.rms_norm_backward(rows, rows, torch.ones(32), torch.ones(2)),
        lambda: ops.swiglu(rows, wide),
        lambda: ops.swiglu(rows, rows.bfloat16()),
        lambda: ops.swiglu_backward(wide, rows, rows),
        lambda: ops.rotate(torch.ones(2, 3, 32), rows, wide),
        lambda: ops.rotate(torch.ones(2, 3, 16), torch.ones(3, 16), torch.ones(3, 16)),
        lambda: ops.packed_attention(query, query[:, 1:], query[:, 1:], spans, 1.0, None),
        lambda: ops.packed_attention(query[:, 1:], query[:, 1:], query[:, 1:], spans, 1.0, None),
        lambda: ops.packed_attention(torch.cat([query, query[:1]]), query, query, spans, 1.0, None),
        lambda: ops.packed_attention(query, query.bfloat16(), query, spans, 1.0, None),
        lambda: ops.packed_attention(query.half(), query.half(), query.half(), spans, 1.0, None),
        lambda: ops.packed_attention_backward(query, query, query, query, sums, spans, 1.0, None),
        lambda: ops.packed_attention_backward(grad, query, query, query, sums[1:], spans, 1.0, None),
        lambda: ops.packed_attention_backward(grad, query, query.bfloat16(), query, sums, spans, 1.0, None),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match="expected"):
            call()


@pytest.mark.parametrize("width", [20, 0])
def test_what_does_not_fit_is_left_to_torch(width: int) -> None:
    assert not ops.takes(torch.ones(2, width), width)
    assert not ops.takes(torch.ones(2, 32, dtype=torch.float16), 32)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("llama", 2), ("qwen3", 2), ("gemma3_text", 6), ("phi3", 2), ("gpt_neox", 2), ("gpt2", 0), ("cohere", 0)],
)
def test_the_usual_rotation_is_replaced_once(architecture: str, expected: int) -> None:
    """Cohere's rotary embedding rotates neighbouring pairs."""
    model = build(architecture, **({} if architecture == "gpt2" else {"head_dim": 32})).model
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert len(replace_rotary(model)) == expected
        assert not replace_rotary(model)
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)
        several = torch.tensor([[5, 9, 40, 7], [1, 2, 3, 4]])
        torch.testing.assert_close(model(input_ids=several).logits[:1], before, rtol=1e-4, atol=1e-5)
