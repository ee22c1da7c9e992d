"""Names of the kernels and weight formats of linear layers for serving on a CPU. Imports no torch."""

from __future__ import annotations

from typing import Literal

LinearKernel = Literal["auto", "torch", "onednn", "fbgemm", "native"]
Weights = Literal["stored", "restored", "q8_0", "q4_1", "q4_0"]
