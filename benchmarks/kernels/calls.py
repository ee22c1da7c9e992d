"""What one call of a kernel costs at batch 1: through ctypes, as now, and as an operator of torch.library.

`torch.library` would check shapes and know gradients in one place. A decode step that is not fused calls about 210
kernels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.kernels.turns import HIDDEN, LAYERS, in_turn
from shared.kernels import ops

CALLS = 7 * LAYERS
"""Of a decode step: four products, two norms and attention in each layer."""
EPSILON = 1e-5


def norm(rounds: int) -> dict[str, Any]:
    """`ctypes` beside `Library.impl` and `custom_op`, the latter with fake and autograd registrations; one row."""
    library = torch.library.Library("softprompt_benchmark", "DEF")
    library.define("norm(Tensor x, Tensor weight, float epsilon) -> Tensor")
    library.impl("norm", ops.rms_norm, "CPU")
    custom = torch.library.custom_op("softprompt_benchmark::custom_norm", _norm, mutates_args=())
    custom.register_fake(lambda x, weight, epsilon: torch.empty_like(x))
    custom.register_autograd(lambda ctx, grad: (grad, None, None), setup_context=lambda ctx, inputs, output: None)
    x, weight = torch.randn(1, 1, HIDDEN).bfloat16(), torch.ones(HIDDEN)
    functions = {
        "ctypes": ops.rms_norm,
        "Library.impl": torch.ops.softprompt_benchmark.norm.default,
        "custom_op": custom,
    }
    contestants = {name: partial(_call, function, x, weight) for name, function in functions.items()}
    return {"one row": in_turn(contestants, rounds, "ctypes", "custom_op")}


def _norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return ops.rms_norm(x, weight, epsilon)


def _call(function: Any, x: torch.Tensor, weight: torch.Tensor) -> None:
    for _ in range(CALLS):
        function(x, weight, EPSILON)
