"""Which linear layer a model gets on a CPU: what measures faster, since that differs between processors, and no flag tells."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from inference_service.engine import half_linear
from inference_service.engine.half_linear import HalfLinear
from inference_service.engine.packed_linear import PackedLinear, can_pack

Swap = Callable[[nn.Linear], nn.Module]
ROWS = (16, 256)
"""A decode step of some streams, and a prefill."""
_WIDTH, _REPEATS, _COPIES = 1024, 5, 4


def choose_linear(dtype: torch.dtype) -> Swap | None:
    """What to put in place of a linear layer of the dtype; None: nothing is faster. Takes some tens of milliseconds."""
    packed = PackedLinear if can_pack(dtype) else None
    if dtype != torch.bfloat16 or not _half_is_faster(packed):
        return packed

    def swap(linear: nn.Linear) -> nn.Module:
        if half_linear.keeps(linear.weight):
            return HalfLinear(linear)
        return linear if packed is None else packed(linear)

    return swap


@torch.no_grad()
def _half_is_faster(packed: type[PackedLinear] | None) -> bool:
    """By the product of the ratios, so that each number of rows counts the same."""
    linears = [nn.Linear(_WIDTH, _WIDTH, bias=False, dtype=torch.bfloat16) for _ in range(_COPIES)]
    try:
        half: list[nn.Module] = [HalfLinear(linear) for linear in linears]
    except (RuntimeError, AttributeError):
        return False
    other: list[nn.Module] = [linear if packed is None else packed(linear) for linear in linears]
    ratio = 1.0
    for rows in ROWS:
        ratio *= _seconds(half, rows) / _seconds(other, rows)
    return ratio < 1.0


def _seconds(linears: list[nn.Module], rows: int) -> float:
    """The best of several, so that a busy machine doesn't decide."""
    x = torch.ones(1, rows, _WIDTH, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        for linear in linears:
            linear(x)
        best = min(best, time.perf_counter() - begun)
    return best
