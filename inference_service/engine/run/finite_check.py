"""Which sequences of a step got keys and values that are not finite.

A position whose key or value is not finite attends to itself, so its hidden state is not finite either, and stays so up
to the last layer. Logits can't tell: they exist only for a chunk's last position, which in a model with sliding windows
may not see the damage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from inference_service.engine.core.plan import Chunk


class FiniteCheck:
    """Looks at the hidden states of every forward pass between `begin` and `damaged`.

    Decodes in a captured graph are left out: their own logits prove them.
    """

    def __init__(self, model: Any) -> None:
        self._sums: list[torch.Tensor] | None = None
        model.base_model.register_forward_hook(self._look)

    def begin(self) -> None:
        self._sums = []

    def damaged(self, chunks: Sequence[Chunk]) -> set[int]:
        """Rows of the chunks that were computed, in this order, since `begin` and have a position that is not finite."""
        sums, self._sums = self._sums, None
        if not sums:
            return set()
        finite = torch.isfinite(torch.cat(sums)).tolist()
        damaged, first = set[int](), 0
        for chunk in chunks:
            if not all(finite[first : first + chunk.num_positions]):
                damaged.add(chunk.row)
            first += chunk.num_positions
        return damaged

    def _look(self, module: torch.nn.Module, args: object, output: Any) -> None:
        """hidden states `[1, positions, width]`"""
        if self._sums is not None:
            self._sums.append(output[0][0].float().sum(-1))
