"""Weights of 4 or 8 bits in blocks of 32 inputs, the formats Q4_0, Q4_1 and Q8_0 of GGUF files, made from any matrix.

A weight is `scale * code + least`, with an unsigned code and two float16 numbers for each block. If a matrix was
dequantised from one of the formats and rounded to bfloat16, as `softprompt models pull` does with a GGUF file, its
codes and numbers can be found again, so that no weight differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from shared.kernels import ops

QuantisedFormat = Literal["q4_0", "q4_1", "q8_0"]
BLOCK, PANEL = 32, 16
_SAMPLE = 64
"""Rows of a matrix that show from which format it was dequantised, if from any."""
_MAX_ROWS = 4096
"""Rows that are quantised at once: bounds the memory for float32 copies."""
_SMALLEST: dict[QuantisedFormat, int] = {"q4_1": 0, "q4_0": -8, "q8_0": -128}
"""The smallest code. Codes are stored as the distance from it."""


@dataclass(frozen=True)
class QuantisedWeight:
    """A matrix `[out, in]`, in a layout of blocks.h."""

    panels: torch.Tensor
    """uint8 `[out / 16, in / 32, bytes]`."""
    bits: int


def fits(weight: torch.Tensor) -> bool:
    """Whether a matrix `[out, in]` has whole blocks and panels."""
    return weight.shape[0] % PANEL == 0 and weight.shape[1] % BLOCK == 0 and weight.numel() > 0


def restore(weight: torch.Tensor) -> QuantisedWeight | None:
    """The blocks from which `[out, in]` was dequantised and rounded to bfloat16, bit by bit; None if it was not."""
    if not fits(weight) or weight.dtype != torch.bfloat16:
        return None
    weight = weight.detach()
    sample = weight[:: max(1, len(weight) // _SAMPLE)]
    for kind, smallest in _SMALLEST.items():
        if ops.find_codes(sample.reshape(-1, BLOCK), smallest) is not None:
            found = ops.find_codes(weight.reshape(-1, BLOCK), smallest)
            return None if found is None else _packed(*found, len(weight), kind)
    return None


def quantise(weight: torch.Tensor, kind: QuantisedFormat) -> QuantisedWeight:
    """weight `[out, in]` of any floating dtype, finite, for which `fits` is true."""
    parts = list[QuantisedWeight]()
    for start in range(0, len(weight), _MAX_ROWS):
        rows = weight.detach()[start : start + _MAX_ROWS]
        parts.append(_packed(*_codes(rows.float().reshape(-1, BLOCK), kind), len(rows), kind))
    return QuantisedWeight(torch.cat([part.panels for part in parts]), parts[0].bits)


def _codes(blocks: torch.Tensor, kind: QuantisedFormat) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """blocks `[n, 32]` -> codes, whole numbers in the same shape; float16 scale and least `[n, 1]`.

    Codes are llama.cpp's. Then scale and least are those with the smallest error for these codes.
    """
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    if kind == "q4_1":
        step = (high - low) / 15
        codes = ((blocks - low) / _divisor(step)).round_().clamp_(0, 15)
        centred = codes - codes.mean(-1, keepdim=True)
        scale = (centred * blocks).sum(-1, keepdim=True) / _divisor(centred.square().sum(-1, keepdim=True))
        scale = scale.half()
        return codes, scale, (blocks - scale.float() * codes).mean(-1, keepdim=True).half()
    smallest = _SMALLEST[kind]
    step = torch.where(high > -low, high, low) / -8 if kind == "q4_0" else torch.maximum(high, -low) / 127
    signed = (blocks / _divisor(step)).round_().clamp_(smallest, -1 - smallest)
    scale = ((signed * blocks).sum(-1, keepdim=True) / _divisor(signed.square().sum(-1, keepdim=True))).half()
    return signed - smallest, scale, (scale.float() * smallest).half()


def _divisor(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x == 0, 1.0, x)


def _packed(
    codes: torch.Tensor, scale: torch.Tensor, least: torch.Tensor, outputs: int, kind: QuantisedFormat
) -> QuantisedWeight:
    """codes `[outputs * blocks, 32]`, scale and least `[outputs * blocks, 1]`; blocks.h describes the layouts."""
    bits, panels = 8 if kind == "q8_0" else 4, outputs // PANEL
    blocks = len(codes) // outputs
    codes, numbers = codes.to(torch.uint8), torch.stack([scale, least], -1).view(panels, PANEL, blocks, 2, 1)
    if ops.expands_blocks(blocks * BLOCK):
        places = codes.view(panels, 2, 8, blocks, bits // 2, 32 // bits, 2).permute(0, 3, 4, 1, 2, 6, 5)
    else:
        places = codes.view(panels, PANEL, blocks, bits, 2, 8 // bits, 2).permute(0, 2, 3, 1, 6, 4, 5)
    words = places.flatten() if bits == 8 else places.flatten()[::2] | places.flatten()[1::2] << 4
    parts = numbers.permute(0, 2, 3, 1, 4).contiguous().view(torch.uint8), words
    return QuantisedWeight(torch.cat([part.view(panels, blocks, -1) for part in parts], -1), bits)
