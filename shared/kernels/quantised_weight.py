"""Weights of 4 or 8 bits in blocks of 32 inputs, the formats Q4_0, Q4_1 and Q8_0 of GGUF files, made from any matrix.

A weight is `scale * code + least`, with an unsigned code and two float16 numbers for each block. If a matrix was
dequantised from one of the formats and rounded to bfloat16, as `softprompt models pull` does with a GGUF file, its
codes are found again: rounding moves a weight by a small part of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

QuantisedFormat = Literal["q4_0", "q4_1", "q8_0"]
BLOCK, PANEL = 32, 16
_SAME = 2**-8.7
"""bfloat16's rounding changes a matrix by 2^-9.6 of its norm, rounding to 8 bits by about 2^-7.6 and to 4 by 2^-3.6."""
_MAX_ROWS = 4096
"""Rows that are quantised at once: bounds the memory for float32 copies."""


@dataclass(frozen=True)
class QuantisedWeight:
    """A matrix `[out, in]`, in the layout of quantised.c."""

    panels: torch.Tensor
    """uint8 `[out / 16, in / 32, bytes]`."""
    bits: int
    error: float
    """Norm of the difference to the original, relative to the original's."""

    @property
    def is_same(self) -> bool:
        """Whether the original was of this format: it differs by no more than the rounding of bfloat16."""
        return self.error <= _SAME


def fits(weight: torch.Tensor) -> bool:
    """Whether a matrix `[out, in]` has whole blocks and panels."""
    return weight.shape[0] % PANEL == 0 and weight.shape[1] % BLOCK == 0 and weight.numel() > 0


def quantise(weight: torch.Tensor, kind: QuantisedFormat) -> QuantisedWeight:
    """weight `[out, in]` of any floating dtype, finite, for which `fits` is true."""
    panels, lost, norm = list[torch.Tensor](), 0.0, 0.0
    bits = 8 if kind == "q8_0" else 4
    for start in range(0, len(weight), _MAX_ROWS):
        rows = weight.detach()[start : start + _MAX_ROWS]
        blocks = rows.float().view(len(rows), -1, BLOCK)  # [out, blocks, 32]
        codes, scale, least = _codes(blocks, kind)
        found = torch.addcmul(least.float(), scale.float(), codes)
        lost, norm = lost + float((found - blocks).square().sum()), norm + float(blocks.square().sum())
        panels.append(_packed(codes.to(torch.uint8), scale, least, bits))
    return QuantisedWeight(torch.cat(panels), bits, (lost / norm) ** 0.5 if norm else 0.0)


def _codes(blocks: torch.Tensor, kind: QuantisedFormat) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """blocks `[out, blocks, 32]` -> codes, whole numbers in the same shape; float16 scale and least `[out, blocks, 1]`.

    Codes are llama.cpp's. Then scale and least are those with the smallest error for these codes, which undoes what the
    rounding of the block's extreme weights does to all others.
    """
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    if kind == "q4_1":
        step = (high - low) / 15
        codes = ((blocks - low) / _divisor(step)).round_().clamp_(0, 15)
        centred = codes - codes.mean(-1, keepdim=True)
        scale = (centred * blocks).sum(-1, keepdim=True) / _divisor(centred.square().sum(-1, keepdim=True))
        scale = scale.half()
        return codes, scale, (blocks - scale.float() * codes).mean(-1, keepdim=True).half()
    largest = torch.where(high > -low, high, low)
    step, middle, last = (largest / -8, 8, 15) if kind == "q4_0" else (largest.abs() / 127, 128, 255)
    signed = (blocks / _divisor(step)).round_().clamp_(-middle, last - middle)
    scale = ((signed * blocks).sum(-1, keepdim=True) / _divisor(signed.square().sum(-1, keepdim=True))).half()
    return signed + middle, scale, (scale.float() * -middle).half()


def _divisor(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x == 0, 1.0, x)


def _packed(codes: torch.Tensor, scale: torch.Tensor, least: torch.Tensor, bits: int) -> torch.Tensor:
    """codes `[out, blocks, 32]` uint8 -> `[out / 16, blocks, bytes]` uint8.

    A 32-bit word holds its even inputs in the lower half and its odd ones in the upper half.
    """
    outputs, blocks, _ = codes.shape
    shifts = 16 // bits
    word = codes.view(outputs, blocks, bits, shifts, 2).int()
    places = torch.arange(shifts).mul_(bits)[:, None] + torch.tensor([0, 16])
    words = (word << places.int()).sum((-1, -2), dtype=torch.int64).to(torch.int32)  # [out, blocks, bits]
    by_panel = words.view(-1, PANEL, blocks, bits).permute(0, 2, 3, 1).contiguous().view(torch.uint8)
    numbers = torch.cat([scale, least], -1).view(-1, PANEL, blocks, 2).permute(0, 2, 3, 1).contiguous()
    return torch.cat([numbers.view(torch.uint8).flatten(2), by_panel.flatten(2)], -1)
