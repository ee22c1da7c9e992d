"""Products with frozen bfloat16 weights, computed in float32 on processors that multiply float32 faster (measured).

Weights and activations are kept in bfloat16, half the memory; the operands are widened for the time of one product. On
a Xeon without AMX tiles that takes little more than half the time of the same product in bfloat16
(`make bench-kernels`), and its sums are rounded once.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from shared.kernels.prove import Replacement
from shared.kernels.timing import best_seconds

MIN_ROWS = 128
"""With fewer rows, widening the weights takes longer than it saves."""
MAX_WIDENED = 1 << 26
"""256 MiB of float32. Only output heads of large vocabularies are larger; they stay bfloat16."""


def forward_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x `[..., in]`, weight `[out, in]`, bias `[out]` -> `[..., out]`, in x's dtype."""
    return (widened_product if _is_widened(x, weight) else F.linear)(x, weight, bias)


def widened_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`forward_product`, always computed in float32."""
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def backward_product(*pairs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The sum of dy `[..., out]` times weight `[out, in]` over all pairs -> `[..., in]`, in the first dy's dtype."""
    first = pairs[0][0]
    widened = all(_is_widened(dy, weight) for dy, weight in pairs)
    dx: torch.Tensor | None = None
    for dy, weight in pairs:
        rows = dy.reshape(-1, dy.shape[-1])
        left, right = (rows.float(), weight.float()) if widened else (rows, weight)
        dx = left @ right if dx is None else dx.addmm_(left, right)
    assert dx is not None
    return dx.to(first.dtype).view(*first.shape[:-1], -1)


class FrozenLinear(torch.autograd.Function):
    """x `[..., in]`, weight `[out, in]`, bias `[out]` or None -> `[..., out]`. Weight and bias get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return forward_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return backward_product((grads[0], *ctx.saved_tensors)), None, None


def faster_linear(module: nn.Module) -> Replacement | None:
    """A replacement of a frozen bfloat16 layer if this processor multiplies float32 faster, else None."""
    if type(module) is not nn.Linear or module.weight.requires_grad:
        return None
    if not _pays(module.weight.dtype, module.weight.device):
        return None
    bias: torch.Tensor | None = module.bias
    return Replacement([partial(_forward, module.weight, bias)], module.in_features, module.weight.dtype)


def _forward(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return FrozenLinear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]


def _is_widened(x: torch.Tensor, weight: torch.Tensor) -> bool:
    many = x.numel() >= MIN_ROWS * x.shape[-1] and weight.numel() <= MAX_WIDENED
    return many and _pays(x.dtype, x.device)


@functools.cache
def _pays(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether widening is faster. Measured once per process, in some tens of milliseconds."""
    if dtype != torch.bfloat16 or device.type != "cpu":
        return False
    rows, weight = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    widened, plain = best_seconds(lambda: widened_product(rows, weight), lambda: F.linear(rows, weight))
    return widened < plain
