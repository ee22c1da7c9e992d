"""Names of the formats in which linear layers keep their weights for serving on a CPU."""

from __future__ import annotations

from typing import Literal

Weights = Literal["stored", "restored", "q8_0", "q4_1", "q4_0"]
