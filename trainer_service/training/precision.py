"""In which precision a frozen model is trained on, where the operator leaves it open: the one that this processor
multiplies faster.

Training is bound by matrix products. Some processors have bfloat16 instructions at half the speed of their float32
units (measured: a Xeon without AMX tiles, 75 against 150 GFLOP/s a core), others are several times faster in bfloat16;
capability flags don't tell which. Float32 is exact, so bfloat16 has to earn its place. Serving decides for itself:
decoding is bound by memory, not by products.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from shared.kernels.timing import best_seconds
from shared.model import base_model
from shared.model.base_model import DType

ROWS, HIDDEN = 512, 512
MARGIN = 1.2
"""So many times faster bfloat16 must be: float32 is exact, and a busy moment must not decide."""


def pick_training_dtype(asked: DType, device: torch.device) -> DType:
    """`asked` unless it is `auto`: on a CPU then float32 or bfloat16, measured in some tens of milliseconds; on a GPU
    without bfloat16 float32, because small gradients become zero in float16.
    """
    if asked != "auto":
        return asked
    if device.type != "cpu":
        return "float32" if base_model.pick_dtype("auto", device) == torch.float16 else "auto"
    single, half = _product_seconds(torch.float32, torch.bfloat16)
    return "bfloat16" if half * MARGIN < single else "float32"


def _product_seconds(*dtypes: torch.dtype) -> list[float]:
    operands = [(torch.ones(ROWS, HIDDEN, dtype=dtype), torch.ones(HIDDEN, HIDDEN, dtype=dtype)) for dtype in dtypes]
    return best_seconds(*(partial(F.linear, *pair) for pair in operands))
