"""Linear layers for serving on a CPU with weights of 4 or 8 bits: decoding reads a third or half of the bytes."""

from __future__ import annotations

import torch
from torch import nn

from shared.errors import PreconditionFailed
from shared.kernels import library
from shared.kernels.formats import Weights
from shared.kernels.quantised_weight import fits, quantise, restore
from shared.kernels.serving_linear import NativeLinear, Swap


def quantising(weights: Weights, device: torch.device, dtype: torch.dtype, other: Swap | None) -> Swap | None:
    """A function that replaces a linear layer by one with these weights; layers that don't fit are replaced by `other`.

    `restored` quantises only matrices that were dequantised from one of the formats, so it changes no weight; the other
    formats are applied to all layers. Raises PreconditionFailed if the kernels are not available for this device or
    dtype.
    """
    if weights == "stored":
        return other
    if device.type != "cpu" or dtype != torch.bfloat16 or library.load() is None:
        name = str(dtype).removeprefix("torch.")
        raise PreconditionFailed(
            f"weights: {weights} needs the compiled kernels, on a CPU, in bfloat16; here: {device.type}, {name}"
        )

    def swap(linear: nn.Linear) -> nn.Module:
        quantised = None
        if weights == "restored":
            quantised = restore(linear.weight)
        elif fits(linear.weight):
            quantised = quantise(linear.weight, weights)
        if quantised is not None:
            return NativeLinear(linear, quantised)
        return linear if other is None else other(linear)

    return swap
