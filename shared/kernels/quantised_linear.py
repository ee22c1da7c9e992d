"""Linear layers for serving on a CPU with weights of 4 or 8 bits: decoding reads a third or half of the bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import nn

from shared.errors import PreconditionFailed
from shared.kernels import library, ops
from shared.kernels.formats import Weights as Weights
from shared.kernels.quantised_weight import QuantisedFormat, QuantisedWeight, fits, quantise
from shared.kernels.serving_linear import Swap

log = logging.getLogger(__name__)

_SAMPLE = 64
"""Rows of a matrix that show whether it was dequantised, and from which format."""


class QuantisedLinear(nn.Module):
    """A product with a quantised weight (quantised.c). bfloat16. `weight` has the original's dtype and shape only."""

    def __init__(self, linear: nn.Linear, quantised: QuantisedWeight) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._quantised = quantised
        bias: torch.Tensor | None = linear.bias
        self._bias = None if bias is None else bias.detach().float()
        self.weight = torch.empty_like(linear.weight, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`. Raises ValueError for another dtype, width or device, MemoryError."""
        return ops.quantised_linear(x, self._quantised.panels, self._quantised.bits, self._bias)

    @property
    def packed(self) -> ops.PackedWeights:
        """The weights as the kernels read them."""
        quantised = self._quantised
        return ops.PackedWeights(quantised.panels, quantised.bits, self._bias, self.in_features, self.out_features)


def quantising(weights: Weights, device: torch.device, dtype: torch.dtype, other: Swap | None) -> Swap | None:
    """A function that replaces a linear layer by one with these weights; layers that don't fit are replaced by `other`.

    `restored` quantises only matrices that were dequantised from one of the formats, so it changes no weight by more
    than bfloat16's rounding; the other formats are applied to all layers. Raises PreconditionFailed if the kernels are
    not available for this device or dtype.
    """
    if weights == "stored":
        return other
    if device.type != "cpu" or dtype != torch.bfloat16 or library.load() is None:
        name = str(dtype).removeprefix("torch.")
        raise PreconditionFailed(
            f"weights: {weights} needs the compiled kernels, on a CPU, in bfloat16; here: {device.type}, {name}"
        )

    def swap(linear: nn.Linear) -> nn.Module:
        for kind in _formats(linear.weight, weights) if fits(linear.weight) else ():
            quantised = quantise(linear.weight, kind)
            if weights != "restored" or quantised.is_same:
                return QuantisedLinear(linear, quantised)
        return linear if other is None else other(linear)

    return swap


def _formats(weight: torch.Tensor, weights: Weights) -> Iterator[QuantisedFormat]:
    if weights in ("q8_0", "q4_1", "q4_0"):
        yield weights
        return
    step = max(1, weight.shape[0] // _SAMPLE)
    sample = weight[::step][:_SAMPLE]
    for kind in ("q4_1", "q4_0", "q8_0"):
        if quantise(sample[: len(sample) // 16 * 16], kind).is_same:
            yield kind
