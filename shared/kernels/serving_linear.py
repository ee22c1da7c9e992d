"""Linear layers for serving on a CPU, with weights in the layout of a matrix kernel, and the choice of the fastest.

The fastest kernel differs between processors, and no capability flag predicts it, so it is measured. Each layer
maps `[..., in]` to `[..., out]` in the same dtype. `weight` has the dtype and shape of the original, `[out, in]`,
because some models read them, but not its content.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from shared.errors import PreconditionFailed
from shared.kernels import library, ops
from shared.kernels.formats import LinearKernel
from shared.kernels.quantised_weight import QuantisedWeight, quantise, restore
from shared.kernels.timing import best_seconds

Swap = Callable[[nn.Linear], nn.Module]
ROWS = (1, 16, 256)
"""The measured numbers of rows: a decode step of one stream and of some, and a prefill."""
_REPEATS = (5, 5, 2)
"""For each of them; a prefill takes so long that little disturbs it."""
_WIDTH, _COPIES = 1024, 4
_OWN_FAVOUR = 0.5
"""Of the product of our kernel's times: only its layout allows fused steps (`fused_decoder`), which save far more."""
_MAX_FLOAT16_LOSS = 1e-6
"""Relative to a weight's norm: float16 can't hold bfloat16's smallest (below 6e-8) and largest numbers."""


class OneDNNLinear(nn.Module):
    """oneDNN's blocked layout, as Inductor's freezing uses it: half the time at one row, a quarter less at sixteen.

    The results are torch's up to the order of summation. float32 and bfloat16.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS[1])
        self.bias = linear.bias

    @staticmethod
    def is_available(dtype: torch.dtype) -> bool:
        """Whether this build of torch has oneDNN and it computes in `dtype`."""
        available = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        if dtype == torch.bfloat16:  # on processors without its instructions, the layout can't be made
            return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return available and dtype == torch.float32

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        """Every layer."""
        return True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


class FBGEMMLinear(nn.Module):
    """Weights in float16, products in float32, by FBGEMM. bfloat16.

    On processors without AMX tiles, it has float32's speed with bfloat16's memory. float16 has three bits more
    precision than bfloat16, so the results are no worse.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._packed: Any = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach().float(), _float_bias(linear))
        self.weight = torch.empty_like(linear.weight, device="meta")

    @staticmethod
    def is_available(dtype: torch.dtype) -> bool:
        """Whether this build of torch has FBGEMM, which only builds for x86 do."""
        if dtype != torch.bfloat16:
            return False
        try:
            torch.ops.quantized.linear_prepack_fp16(torch.zeros(1, 1), None)
        except (RuntimeError, AttributeError):
            return False
        return True

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        """Whether float16 holds the weights, except for those too small to matter."""
        exact, half = linear.weight.float(), linear.weight.half()
        return bool(half.isfinite().all() and (half.float() - exact).norm() <= _MAX_FLOAT16_LOSS * exact.norm())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`."""
        out: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(x.float(), self._packed)
        return out.to(x.dtype)


class NativeLinear(nn.Module):
    """Products in float32 by our kernel (linear.c). bfloat16.

    On a Xeon without AMX it takes half the time of oneDNN and FBGEMM for a decode step of sixteen rows, and four fifths
    for a prefill; with AMX two thirds of oneDNN's time for up to 64 rows, and 1.1 of it for 256.

    Weights are stored in bfloat16, or as `quantised`. With AMX, a matrix that was dequantised is stored in its blocks:
    a third or half of the bytes, and the products have the same bits.
    """

    def __init__(self, linear: nn.Linear, quantised: QuantisedWeight | None = None) -> None:
        super().__init__()
        weight, bias = linear.weight, _float_bias(linear)
        if quantised is None and ops.expands_blocks(linear.in_features):
            quantised = restore(weight)
        if quantised is None:
            self.packed = ops.pack_weights(weight, bias)
        else:
            sizes = linear.in_features, linear.out_features
            self.packed = ops.PackedWeights(quantised.panels, quantised.bits, bias, *sizes)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.empty_like(weight, device="meta")

    @staticmethod
    def is_available(dtype: torch.dtype) -> bool:
        """Whether the compiled kernels are available and compute in `dtype`."""
        return dtype == torch.bfloat16 and library.load() is not None

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        """Whether both sizes are multiples of the kernel's vector."""
        return linear.in_features % ops.LANES == 0 and linear.out_features % ops.LANES == 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`. Raises ValueError for another dtype, width or device, MemoryError."""
        return ops.linear(x, self.packed)


KINDS: dict[str, type[OneDNNLinear] | type[FBGEMMLinear] | type[NativeLinear]] = {
    "onednn": OneDNNLinear,
    "fbgemm": FBGEMMLinear,
    "native": NativeLinear,
}


def choose_linear(dtype: torch.dtype, kernel: LinearKernel = "auto") -> Swap | None:
    """A function that replaces a linear layer of `dtype` by the named kind; `auto` measures the fastest (0.6 s).

    `auto` also measures our kernel with weights in blocks. If it is the fastest, matrices that were dequantised are
    stored in their blocks. None keeps torch's layers. Raises PreconditionFailed if the named kernel is not available
    here for the dtype.
    """
    if kernel == "torch":
        return None
    kinds = [kind for name, kind in KINDS.items() if kernel in ("auto", name) and kind.is_available(dtype)]
    if kernel != "auto" and not kinds:
        name = str(dtype).removeprefix("torch.")
        raise PreconditionFailed(f"linear_kernel: {kernel} is not available on this machine in {name}")
    if not kinds:
        return None
    measured: list[Swap] = [*kinds, _in_blocks] if NativeLinear in kinds else [*kinds]
    blocks_first = False
    if kernel == "auto" and len(measured) > 1:
        costs = dict(zip(measured, _costs(tuple(measured), dtype, torch.get_num_threads()), strict=True))
        costs |= {own: costs[own] * _OWN_FAVOUR for own in (NativeLinear, _in_blocks) if own in costs}
        kinds.sort(key=costs.__getitem__)
        blocks_first = _in_blocks in costs and costs[_in_blocks] < costs[kinds[0]]

    def swap(linear: nn.Linear) -> nn.Module:
        if blocks_first and (quantised := restore(linear.weight)) is not None:
            return NativeLinear(linear, quantised)
        return next((kind(linear) for kind in kinds if kind.fits(linear)), linear)

    return swap


def _in_blocks(linear: nn.Linear) -> nn.Module:
    """The layer with blocks of 8 bits, which take longer than those of 4."""
    return NativeLinear(linear, quantise(linear.weight, "q8_0"))


@functools.lru_cache(maxsize=16)
@torch.no_grad()
def _costs(kinds: tuple[Swap, ...], dtype: torch.dtype, num_threads: int) -> tuple[float, ...]:
    """Each kind's product of times, measured once per process.

    In a product, each number of rows counts the same. `num_threads`: those of torch, on which the times depend.
    """
    one = nn.Linear(_WIDTH, _WIDTH, bias=False, dtype=dtype)
    layers = [[kind(one) for _ in range(_COPIES)] for kind in kinds]
    costs = [1.0] * len(layers)
    for rows, repeats in zip(ROWS, _REPEATS, strict=True):
        x = torch.ones(1, rows, _WIDTH, dtype=dtype)
        seconds = best_seconds(*(partial(_apply_all, linears, x) for linears in layers), repeats=repeats)
        costs = [cost * took for cost, took in zip(costs, seconds, strict=True)]
    return tuple(costs)


def _apply_all(linears: Sequence[nn.Module], x: torch.Tensor) -> None:
    for linear in linears:
        linear(x)


def _float_bias(linear: nn.Linear) -> torch.Tensor | None:
    bias: torch.Tensor | None = linear.bias
    return None if bias is None else bias.detach().float()
