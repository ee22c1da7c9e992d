"""Chooses the training precision if the operator sets none: the one that this processor multiplies faster.

Training is bound by matrix products. Some processors run bfloat16 at half the speed of float32 (measured: a Xeon
without AMX tiles, 75 against 150 GFLOP/s per core), others are several times faster in bfloat16; capability flags don't
tell which. Float32 is exact, so bfloat16 is chosen only if it is clearly faster. Serving chooses separately, because
decoding is bound by memory, not by products.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from shared.kernels.timing import best_seconds
from shared.model import base_model
from shared.model.options import DType

ROWS, HIDDEN = 512, 512
MARGIN = 1.2
"""How many times faster bfloat16 must be. The margin absorbs noise of a busy machine."""


def pick_training_dtype(asked: DType, device: torch.device) -> DType:
    """`asked` unless it is `auto`.

    On a CPU, `auto` becomes float32 or bfloat16, measured in some tens of milliseconds. On a GPU without bfloat16 it
    becomes float32, because small gradients become zero in float16.
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
