"""Finds the sequences of a step whose new keys and values are not finite.

A position whose key or value is not finite attends to itself, so its hidden state is not finite either and stays so up
to the last layer. Logits don't show it reliably: they exist only for the last position of a chunk, which may not see
the damage in a model with sliding windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from inference_service.engine.core.plan import Chunk


class FiniteCheck:
    """Checks the hidden states of every forward pass between `begin` and `damaged`.

    Decodes in a captured graph are not checked here; their own logits show the damage.
    """

    def __init__(self, model: Any) -> None:
        self._sums: list[torch.Tensor] | None = None
        model.base_model.register_forward_hook(self._look)

    def begin(self) -> None:
        """Start to collect the hidden states of a step."""
        self._sums = []

    def damaged(self, chunks: Sequence[Chunk]) -> set[int]:
        """Rows with a position that is not finite; `chunks` are those computed since `begin`, in this order."""
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

    def look(self, hidden: torch.Tensor) -> None:
        """Sum the hidden states `[positions, width]` over their width."""
        if self._sums is not None:
            self._sums.append(hidden.float().sum(-1))

    def _look(self, module: torch.nn.Module, args: object, output: Any) -> None:
        self.look(output[0][0])
