"""Nobody reads the last layer's output but at target positions, so its MLP, most of its work, is computed for them
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def last_mlp(model: torch.nn.Module) -> torch.nn.Module | None:
    """Of the last of `model`'s layers; None if it has none by that name."""
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    found = getattr(max(stacks, key=len)[-1], "mlp", None) if stacks else None
    return found if isinstance(found, torch.nn.Module) else None


@contextmanager
def only_at(positions: torch.Tensor, mlp: torch.nn.Module | None) -> Iterator[None]:
    """Within, `mlp` maps [1, tokens, width] to zeros everywhere but at `positions`, [targets]."""
    if mlp is None:
        yield
        return
    forward, replaced = mlp.forward, vars(mlp).get("forward")

    def some(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        values = forward(hidden.index_select(1, positions), *args, **kwargs)
        if not isinstance(values, torch.Tensor):  # a router that tells its choices, too
            return forward(hidden, *args, **kwargs)
        return torch.zeros_like(hidden).index_copy(1, positions, values)

    mlp.forward = some
    try:
        yield
    finally:
        if replaced is None:
            del mlp.forward
        else:
            mlp.forward = replaced
