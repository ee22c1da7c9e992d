"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) with a frozen weight, for serving and training.

transformers writes it as eight elementwise operations, each with its own backward pass; on a CPU they take a tenth of
a training step. Here it is one function with the gradient written out, `dx = r * (g - xhat * mean(g * xhat))` with
`g = dy * weight`; the compiled kernels need one pass over memory each way.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from shared.kernels import ops
from shared.kernels.prove import Replacement


class TorchRMSNorm(torch.autograd.Function):
    """hidden `[..., width]`, weight `[width]` float32 -> like hidden. The weight gets no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        values = hidden.float()
        norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        scale = norm.square_().div_(values.shape[-1]).add_(epsilon).rsqrt_()  # [..., 1]
        unit = values * scale
        ctx.save_for_backward(unit.to(hidden.dtype), weight, scale)
        is_saved = hidden.dtype == torch.float32  # then `unit` itself, without a copy
        scaled: torch.Tensor = unit * weight if is_saved else unit.mul_(weight)
        return scaled.to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        unit, weight, scale = ctx.saved_tensors
        grad = grads[0] * weight  # float32
        unit = unit.float()
        share = torch.linalg.vecdot(grad, unit).div_(-grad.shape[-1]).unsqueeze(-1)
        return grad.addcmul_(unit, share).mul_(scale).to(grads[0].dtype), None, None


class CompiledRMSNorm(torch.autograd.Function):
    """TorchRMSNorm by the compiled kernels."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        result, scales = ops.rms_norm_and_scales(hidden, weight, epsilon)
        ctx.save_for_backward(hidden, weight, scales)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ops.rms_norm_backward(grads[0], *ctx.saved_tensors), None, None


def rms_norm(weight: torch.Tensor, epsilon: float, hidden_states: torch.Tensor) -> torch.Tensor:
    """hidden_states `[..., width]`, weight `[width]` float32, frozen -> like hidden_states.

    Uses the compiled kernels if they are available, else PyTorch.
    """
    if not ops.takes(hidden_states, weight.shape[0]):
        return TorchRMSNorm.apply(hidden_states, weight, epsilon)  # type: ignore[no-any-return, no-untyped-call]
    if not (hidden_states.requires_grad and torch.is_grad_enabled()):  # serving: an autograd.Function costs 4 us a call
        return ops.rms_norm(hidden_states, weight, epsilon)
    return CompiledRMSNorm.apply(hidden_states, weight, epsilon)  # type: ignore[no-any-return, no-untyped-call]


def faster_norm(module: torch.nn.Module) -> Replacement | None:
    """A replacement of a frozen module whose class name ends in RMSNorm; None for other modules.

    The scale is the weight or, as in Gemma, one plus the weight; `prove` decides.
    """
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
        return None
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or weight.requires_grad:
        return None
    scales = weight.detach().float(), weight.detach().float() + 1
    return Replacement([partial(rms_norm, scale, epsilon) for scale in scales], weight.shape[0], weight.dtype)
