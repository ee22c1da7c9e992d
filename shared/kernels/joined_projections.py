"""Replaces a model's linear layers, and joins projections of one input into one product.

Query, key and value are joined, and gate and up: three small products take a third longer at sixteen rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from shared.kernels.serving_linear import Swap

_JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of projections with the same input, in the order in which they are called."""


def replace_linears(model: nn.Module, dtype: torch.dtype, swap: Swap) -> None:
    """Replaces every plain linear layer of `dtype` by the result of `swap`, in place; joins those with one input."""
    for module in list(model.modules()):
        for names in _JOINED:
            _join(module, names, dtype, swap)
        for name, child in module.named_children():
            if type(child) is nn.Linear and child.weight.dtype == dtype:
                setattr(module, name, swap(child))


class JoinedProjections:
    """One product for several projections. A call of the first computes it; the others return parts of the result.

    If a projection is called with another input than the first (in cross-attention), it computes the product itself.
    """

    def __init__(self, linears: list[nn.Linear], swap: Swap) -> None:
        outputs = sum(linear.out_features for linear in linears)
        joined = nn.Linear(linears[0].in_features, outputs, bias=False, device="meta")
        joined.weight = nn.Parameter(torch.cat([linear.weight for linear in linears]), requires_grad=False)
        if linears[0].bias is not None:
            joined.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
        self.product = swap(joined)
        self._sizes = [linear.out_features for linear in linears]
        self._input: torch.Tensor | None = None
        self._parts: list[torch.Tensor | None] = []

    @property
    def weight(self) -> torch.Tensor:
        """A tensor with the dtype of the originals, but not their content; some models read its dtype."""
        weight: torch.Tensor = self.product.weight  # type: ignore[assignment]
        return weight

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Part `index` of the product with x: `[..., in]` -> `[..., that part's out]`, a view."""
        if index == 0 or x is not self._input or self._parts[index] is None:
            self._input, self._parts = x, list(self.product(x).split(self._sizes, dim=-1))
        found = self._parts[index]
        assert found is not None
        self._parts[index] = None
        if index == len(self._sizes) - 1:
            self._input = None
        return found


class JoinedPart(nn.Module):
    """Takes the place of projection `index` of `joined`."""

    def __init__(self, joined: JoinedProjections, index: int, linear: nn.Linear) -> None:
        super().__init__()
        self._joined, self._index = joined, index
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = joined.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`."""
        return self._joined.part(self._index, x)

    @property
    def whole(self) -> nn.Module:
        """The layer that computes all projections, one after the other."""
        return self._joined.product


def _join(module: nn.Module, names: tuple[str, ...], dtype: torch.dtype, swap: Swap) -> None:
    linears: list[Any] = [getattr(module, name, None) for name in names]
    if not all(type(linear) is nn.Linear and linear.weight.dtype == dtype for linear in linears):
        return
    if len({linear.in_features for linear in linears}) > 1 or len({linear.bias is None for linear in linears}) > 1:
        return
    joined = JoinedProjections(linears, swap)
    for index, name in enumerate(names):
        setattr(module, name, JoinedPart(joined, index, linears[index]))
