"""The memory that a row takes in a training step. Pure.

It has a part for each position and, where attention writes its scores to memory, a part for each pair of positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RowMemory:
    """The memory of rows by their number of positions."""

    bytes_per_position: int = 1
    """Bytes kept for each position until the backward pass, in all layers together."""
    bytes_per_pair: float = 0.0
    """Most bytes that attention keeps for a pair of query and key, all heads; 0: scores are never written to memory."""

    def row_bytes(self, num_positions: int) -> int:
        """Bytes of one row. `num_positions` includes the virtual tokens."""
        return int(num_positions * (self.bytes_per_position + self.bytes_per_pair * num_positions))

    def fitting_positions(self, num_bytes: int) -> int:
        """The length of the longest row that fits into `num_bytes`."""
        linear = max(1, self.bytes_per_position)
        if not self.bytes_per_pair:
            return num_bytes // linear
        return int((math.sqrt(linear**2 + 4 * self.bytes_per_pair * num_bytes) - linear) / (2 * self.bytes_per_pair))

    def cost(self, num_positions: int, longest: int) -> int:
        """The memory of `num_positions` positions in rows of up to `longest`, in units of a position of a short row."""
        return int(num_positions * (1 + self.bytes_per_pair * longest / max(1, self.bytes_per_position)))
