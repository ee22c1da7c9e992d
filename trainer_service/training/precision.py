"""In which precision a frozen model is trained on, where the operator leaves it open: the one that this processor multiplies faster.

Training is bound by matrix products. Some processors have bfloat16 instructions at half the speed of their float32 units (measured: a
Xeon without AMX tiles, 75 against 150 GFLOP/s a core), others are several times faster in bfloat16; capability flags don't tell which.
Float32 is exact, so bfloat16 has to earn its place. Serving decides for itself: decoding is bound by memory, not by products.
"""

from __future__ import annotations

import time

import torch

from shared.base_model import DType

ROWS, HIDDEN, REPEATS = 256, 512, 8


def pick_training_dtype(asked: DType, device: torch.device) -> DType:
    """`asked` unless it is `auto` on a CPU; then the faster of float32 and bfloat16, measured in a few milliseconds."""
    if asked != "auto" or device.type != "cpu":
        return asked
    return "bfloat16" if _product_seconds(torch.bfloat16) < _product_seconds(torch.float32) else "float32"


def _product_seconds(dtype: torch.dtype) -> float:
    """The best of several, so that a busy machine doesn't decide."""
    rows, weight = torch.ones(ROWS, HIDDEN, dtype=dtype), torch.ones(HIDDEN, HIDDEN, dtype=dtype)
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        best = min(best, time.perf_counter() - started)
    return best
