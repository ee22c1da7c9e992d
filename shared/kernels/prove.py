"""Compares a faster function with the module that it would replace, on numbers of very different sizes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

log = logging.getLogger(__name__)

Function = Callable[[torch.Tensor], torch.Tensor]
_PROBE_SIZES = (1e-3, 0.1, 1.0, 30.0, 1e4)
"""The small ones reveal another epsilon, the large ones a clamp."""
_FLOAT32_TOLERANCE, _HALF_TOLERANCE = 1e-5, 2e-2


@dataclass(frozen=True)
class Replacement:
    """Candidates, of which one may compute what a module does with rows of `width` numbers of `dtype`."""

    candidates: Sequence[Function]
    width: int
    dtype: torch.dtype


@torch.no_grad()
def proven(module: nn.Module, replacement: Replacement) -> Function | None:
    """The candidate nearest to `module`; None if all differ by more than rounding, or in shape or dtype.

    Rows are compared relative to their norms.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor(_PROBE_SIZES)[:, None]
    probe = (torch.randn(1, len(sizes), replacement.width, generator=generator) * sizes).to(replacement.dtype)
    tolerance = _FLOAT32_TOLERANCE if replacement.dtype == torch.float32 else _HALF_TOLERANCE
    nearest: Function | None = None
    try:
        expected = module(probe)
        for candidate in replacement.candidates:
            found = candidate(probe)
            if (found.shape, found.dtype) != (expected.shape, expected.dtype):
                continue
            differences = (found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
            if float(differences.max()) <= tolerance:
                nearest, tolerance = candidate, float(differences.max())
    except Exception as error:  # it takes other arguments or gives other results, so it is another kind of module
        log.debug("%s keeps its own forward: %s", type(module).__name__, error)
        return None
    return nearest
