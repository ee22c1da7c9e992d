"""Replaces modules of a loaded model by faster ones that compute the same, for serving and for training.

Which modules can be replaced is found by structure and proven on numbers (`prove`), never by an architecture's name;
all others keep their own code. On devices other than the CPU nothing is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from shared.kernels.formats import LinearKernel, Weights
from shared.kernels.gated_mlp import faster_activation, faster_mlp
from shared.kernels.joined_projections import replace_linears
from shared.kernels.norm import faster_norm
from shared.kernels.prove import Replacement, proven
from shared.kernels.quantised_linear import quantising
from shared.kernels.rotary import replace_rotary
from shared.kernels.serving_linear import choose_linear
from shared.kernels.training_linear import faster_linear


@torch.no_grad()
def speed_up_serving(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    kernel: LinearKernel = "auto",
    weights: Weights = "stored",
) -> None:
    """Replaces linear layers of `dtype`, RMS norms, SwiGLU and rotary embeddings in place.

    The results carry no gradient. `kernel` names the matrix product, `auto` measures; `weights` is the format of the
    layers' weights. Raises PreconditionFailed if the named one is not available.
    """
    on_cpu = device.type == "cpu"
    swap = quantising(weights, device, dtype, choose_linear(dtype, kernel) if on_cpu else None)
    if not on_cpu:
        return
    if swap is not None:
        replace_linears(model, dtype, swap)
    replace(model, (faster_norm, faster_activation))
    replace_rotary(model)


def speed_up_training(model: nn.Module, device: torch.device) -> list[nn.Module]:
    """Gives frozen norms, gated MLPs, linear layers and rotary embeddings faster forward and backward passes, in place.

    Returns the changed modules, for `restore`.
    """
    if device.type != "cpu":
        return []
    return [*replace(model, (faster_norm, faster_mlp, faster_linear)), *replace_rotary(model)]


def replace(model: nn.Module, finders: Iterable[Callable[[nn.Module], Replacement | None]]) -> list[nn.Module]:
    """Sets `forward` of each module for which the first matching finder's replacement is proven; returns these modules.

    Calling it again changes nothing.
    """
    finders, replaced = tuple(finders), list[nn.Module]()
    for module in model.modules():
        if "forward" in vars(module):
            continue
        found = next(filter(None, (finder(module) for finder in finders)), None)
        forward = None if found is None else proven(module, found)
        if forward is not None:
            module.forward = forward
            replaced.append(module)
    return replaced


def restore(replaced: Iterable[nn.Module]) -> None:
    """Gives modules that `replace` or `speed_up_training` changed their own forward again."""
    for module in replaced:
        del module.forward
