"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) by the compiled kernels: one pass over queries and
keys instead of five.

transformers' attention modules call a function of their own file for it. Where that function rotates halves, the usual
way, a module gets a copy of its `forward` that finds ours under the same name.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shared.kernels import ops

log = logging.getLogger(__name__)

NAME = "apply_rotary_pos_emb"
_Rotation = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class Rotate(torch.autograd.Function):
    """x `[heads, tokens, width]`, cos and sin `[tokens, width]` -> like x. The angles get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return ops.rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ops.rotate(grads[0], *ctx.saved_tensors, backward=True), None, None


def replace_rotary(model: nn.Module) -> list[nn.Module]:
    """Changes attention modules in place and returns them. Calling it again changes nothing."""
    replaced, faster = list[nn.Module](), dict[_Rotation, _Rotation | None]()
    for module in model.modules():
        forward = getattr(type(module).forward, "__func__", type(module).forward)
        names = getattr(forward, "__globals__", {})
        original = names.get(NAME)
        if original is None or "forward" in vars(module) or NAME not in forward.__code__.co_names:
            continue
        if original not in faster:
            faster[original] = _faster(original)
        if faster[original] is not None:
            kept = forward.__name__, forward.__defaults__, forward.__closure__
            own = types.FunctionType(forward.__code__, {**names, NAME: faster[original]}, *kept)
            own.__kwdefaults__ = forward.__kwdefaults__
            module.forward = types.MethodType(own, module)
            replaced.append(module)
    return replaced


def _faster(original: _Rotation) -> _Rotation | None:
    """Our rotation if it computes the same as `original`."""

    def rotate(*args: Any, **kwargs: Any) -> Any:
        """q and k `[1, heads, tokens, width]`, cos and sin `[1, tokens, width]`; else calls `original`."""
        if len(args) != 4 or kwargs or not _fits(*args):
            return original(*args, **kwargs)
        q, k, cos, sin = args
        return tuple(Rotate.apply(x.squeeze(0), cos[0], sin[0])[None] for x in (q, k))  # type: ignore[no-untyped-call]

    generator = torch.Generator().manual_seed(0)
    probe = [torch.randn(1, *shape, generator=generator) for shape in ((4, 3, 64), (2, 3, 64), (3, 64), (3, 64))]
    if not _fits(*probe):
        return None
    try:
        pairs = zip(rotate(*probe), original(*probe), strict=True)
        same = all(torch.allclose(found, expected, rtol=1e-5, atol=1e-6) for found, expected in pairs)
        return rotate if same else None
    except Exception as error:  # it takes other arguments or gives other results, so it is another kind of function
        log.debug("%s is not replaced: %s", getattr(original, "__module__", NAME), error)
        return None


def _fits(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    if q.dim() != 4 or not ops.takes(q, q.shape[-1]) or q.shape[-1] % (2 * ops.LANES):
        return False
    one = q.shape[0] == k.shape[0] == 1 and q.shape[2:] == k.shape[2:] and cos.shape == sin.shape == (1, *q.shape[2:])
    return one and q.dtype == k.dtype == cos.dtype == sin.dtype
