"""How much memory a row takes in a training step: a part for each position, and one for each pair of positions where
attention's scores are written to memory. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RowMemory:
    bytes_per_position: int = 1
    """Kept until the backward pass, in all layers together."""
    bytes_per_pair: float = 0.0
    """Of a query and a key position, in all heads: the most that attention holds at a time. 0 where scores are never
    written out.
    """

    def row_bytes(self, num_positions: int) -> int:
        """Of one row alone, virtual tokens included."""
        return int(num_positions * (self.bytes_per_position + self.bytes_per_pair * num_positions))

    def fitting_positions(self, num_bytes: int) -> int:
        """Longest row that takes no more than that."""
        linear = max(1, self.bytes_per_position)
        if not self.bytes_per_pair:
            return num_bytes // linear
        return int((math.sqrt(linear**2 + 4 * self.bytes_per_pair * num_bytes) - linear) / (2 * self.bytes_per_pair))

    def cost(self, num_positions: int, longest: int) -> int:
        """What `num_positions` of rows of up to `longest` take, counted in positions of short rows."""
        return int(num_positions * (1 + self.bytes_per_pair * longest / max(1, self.bytes_per_position)))
