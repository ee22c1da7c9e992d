"""Computes the last layer's MLP, most of that layer's work, only at target positions: no other output is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def last_mlp(model: torch.nn.Module) -> torch.nn.Module | None:
    """The MLP of `model`'s last layer; None if the layer has no module called `mlp`."""
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    found = getattr(max(stacks, key=len)[-1], "mlp", None) if stacks else None
    return found if isinstance(found, torch.nn.Module) else None


@contextmanager
def only_at(positions: torch.Tensor, mlp: torch.nn.Module | None) -> Iterator[None]:
    """Within the block, `mlp` maps [1, tokens, width] to zeros everywhere except at `positions`, [targets]."""
    if mlp is None:
        yield
        return
    forward, replaced = mlp.forward, vars(mlp).get("forward")

    def some(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        places = positions.to(hidden.device)
        values = forward(hidden.index_select(1, places), *args, **kwargs)
        if not isinstance(values, torch.Tensor):  # a mixture of experts that also returns its router's choices
            return forward(hidden, *args, **kwargs)
        return torch.zeros_like(hidden).index_copy(1, places, values)

    mlp.forward = some
    try:
        yield
    finally:
        if replaced is None:
            del mlp.forward
        else:
            mlp.forward = replaced
