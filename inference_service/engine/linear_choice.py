"""Which linear layer a model gets on a CPU: what measures faster, since that differs between processors, and no flag tells."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from inference_service.engine.half_linear import HalfLinear
from inference_service.engine.native_modules import WideningLinear
from inference_service.engine.packed_linear import PackedLinear
from shared.errors import PreconditionFailed

Swap = Callable[[nn.Linear], nn.Module]
LinearKernel = Literal["auto", "torch", "onednn", "fbgemm", "native"]
KINDS: tuple[type[PackedLinear] | type[HalfLinear] | type[WideningLinear], ...] = (PackedLinear, HalfLinear, WideningLinear)
_NAMES: dict[str, object] = {"onednn": PackedLinear, "fbgemm": HalfLinear, "native": WideningLinear}
ROWS = (16, 256)
"""A decode step of some streams, and a prefill."""
_WIDTH, _REPEATS, _COPIES = 1024, 5, 4


def choose_linear(dtype: torch.dtype, kernel: LinearKernel = "auto") -> Swap | None:
    """What replaces a linear layer of the dtype: with `auto` the fastest kind that fits it (measured, some 0.1 s), else the named one.

    None keeps torch's own layers. Raises PreconditionFailed if the named kernel is not available here for the dtype.
    """
    if kernel == "torch":
        return None
    kinds = [kind for kind in KINDS if kind.is_available(dtype) and (kernel == "auto" or kind is _NAMES[kernel])]
    if kernel != "auto" and not kinds:
        raise PreconditionFailed(f"linear_kernel: {kernel} is not available on this machine in {str(dtype).removeprefix('torch.')}")
    if len(kinds) > 1:
        kinds.sort(key=lambda kind: _cost(kind, dtype))
    if not kinds:
        return None

    def swap(linear: nn.Linear) -> nn.Module:
        return next((kind(linear) for kind in kinds if kind.fits(linear)), linear)

    return swap


@torch.no_grad()
def _cost(kind: Callable[[nn.Linear], nn.Module], dtype: torch.dtype) -> float:
    """The product of the times, so that each number of rows counts the same."""
    linears = [kind(nn.Linear(_WIDTH, _WIDTH, bias=False, dtype=dtype)) for _ in range(_COPIES)]
    cost = 1.0
    for rows in ROWS:
        cost *= _seconds(linears, torch.ones(1, rows, _WIDTH, dtype=dtype))
    return cost


def _seconds(linears: list[nn.Module], x: torch.Tensor) -> float:
    """The best of several, so that a busy machine doesn't decide."""
    best = float("inf")
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        for linear in linears:
            linear(x)
        best = min(best, time.perf_counter() - begun)
    return best
