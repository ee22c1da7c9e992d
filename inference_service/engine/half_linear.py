"""A linear layer that keeps its weights as float16 and multiplies in float32 (FBGEMM's kernel, in torch's x86 builds).

A processor without tiles for bfloat16 multiplies float32 at twice the speed or more, as soon as there are rows enough to be bound by
arithmetic and not by memory: this has the speed of the one and the memory of the other. Numbers get no worse: float16 has three bits
more than bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_MAX_LOSS = 1e-6
"""Of a weight's norm: bfloat16 reaches further than float16, down (what is below 6e-8 becomes zero) and up."""


class HalfLinear(nn.Module):
    """In place of `linear`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias: torch.Tensor | None = linear.bias
        floats = None if bias is None else bias.detach().float()
        self._packed: Any = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach().float(), floats)
        self.weight = torch.empty_like(linear.weight, device="meta")
        """Without content: some models look at its dtype."""

    @staticmethod
    def is_available(dtype: torch.dtype) -> bool:
        if dtype != torch.bfloat16:
            return False
        try:
            torch.ops.quantized.linear_prepack_fp16(torch.zeros(1, 1), None)
        except (RuntimeError, AttributeError):  # a build without FBGEMM
            return False
        return True

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        """Whether float16 holds the weights, except for what is too small to matter."""
        exact, half = linear.weight.float(), linear.weight.half()
        return bool(half.isfinite().all() and (half.float() - exact).norm() <= _MAX_LOSS * exact.norm())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`, of x's dtype"""
        out: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(x.float(), self._packed)
        return out.to(x.dtype)
