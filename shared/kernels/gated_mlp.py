"""A frozen gated MLP, `down(silu(gate(x)) * up(x))` (SwiGLU, Shazeer 2020, arXiv:2002.05202), with a written gradient.

`training_linear` computes the products. The elementwise part takes one pass over memory each way instead of seven, and
only `gate(x)` and `up(x)` are kept for the backward pass.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from shared.kernels import ops
from shared.kernels.prove import Replacement
from shared.kernels.training_linear import backward_product, forward_product

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class FrozenGatedMLP(torch.autograd.Function):
    """x `[..., width]`, gate and up `[inner, width]`, down `[width, inner]` -> like x. The weights get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gates, ups = forward_product(x, gate), forward_product(x, up)
        ctx.save_for_backward(gates, ups, gate, up, down)
        return forward_product(ops.swiglu(gates, ups), down)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gates, ups, gate, up, down = ctx.saved_tensors
        dgates, dups = ops.swiglu_backward(backward_product((grads[0], down)), gates, ups)
        return backward_product((dgates, gate), (dups, up)), None, None, None


def faster_mlp(module: nn.Module) -> Replacement | None:
    """A replacement of a module with frozen gate, up and down projections without bias; None for other modules.

    None if the compiled kernels are not available.
    """
    linears: list[Any] = [getattr(module, name, None) for name in _PROJECTIONS]
    if not all(type(linear) is nn.Linear and _is_frozen_matrix(linear) for linear in linears):
        return None
    weights: list[torch.Tensor] = [linear.weight.detach() for linear in linears]
    if not ops.takes(weights[0], weights[0].shape[0]):
        return None
    return Replacement([partial(_forward, weights)], weights[0].shape[1], weights[0].dtype)


def faster_activation(module: nn.Module) -> Replacement | None:
    """The same for serving: the module's own layers, of any kind, with one pass between them instead of two."""
    layers: list[Any] = [getattr(module, name, None) for name in _PROJECTIONS]
    if not all(isinstance(layer, nn.Module) and hasattr(layer, "in_features") for layer in layers):
        return None
    if not isinstance(getattr(layers[0], "weight", None), torch.Tensor):  # quantised layers may keep it elsewhere
        return None
    gate, up, down = layers
    if not ops.takes(torch.empty(0, dtype=gate.weight.dtype), down.in_features):
        return None
    return Replacement([lambda x: down(ops.swiglu(gate(x), up(x)))], gate.in_features, gate.weight.dtype)


def _is_frozen_matrix(linear: nn.Linear) -> bool:
    bias: torch.Tensor | None = linear.bias
    return bias is None and not linear.weight.requires_grad


def _forward(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return FrozenGatedMLP.apply(x, *weights)  # type: ignore[no-any-return, no-untyped-call]
