"""Swaps modules of a loaded model for faster ones that compute the same. Each swap is found by structure and proven on numbers, never by
the name of an architecture; what doesn't fit stays as it is. Knows nothing of caches or requests.

- Linear layers get weights in the layout of a faster matrix kernel (`linear_choice`).
- Projections of one input (query, key and value; gate and up) become one product: three small ones cost a third more at sixteen rows.
- RMS norms written out in several passes become one call: of our own kernel's where it can be had, else of torch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from inference_service.engine.linear_choice import LinearKernel, Swap, choose_linear
from inference_service.engine.native_modules import NativeRMSNorm

_JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""In the order in which they are called."""


@torch.no_grad()
def speed_up(model: nn.Module, device: torch.device, dtype: torch.dtype, kernel: LinearKernel = "auto") -> None:
    """In place. On other devices than the CPU nothing is swapped. Raises PreconditionFailed if the named kernel is not available."""
    if device.type != "cpu":
        return
    swap = choose_linear(dtype, kernel)
    for module in list(model.modules()):
        if swap is not None:
            for names in _JOINED:
                _join_projections(module, names, dtype, swap)
        for name, child in module.named_children():
            if swap is not None and type(child) is nn.Linear and child.weight.dtype == dtype:
                setattr(module, name, swap(child))
            elif type(child).__name__.endswith("RMSNorm"):
                replacement = _faster_norm(child)
                if replacement is not None:
                    setattr(module, name, replacement)


class JoinedProjections:
    """One product for all. The first projection computes it when it is called; the others take their part of its result.

    If another input comes than the first one's (cross-attention, say), each part is computed for itself.
    """

    def __init__(self, linears: list[nn.Linear], swap: Swap) -> None:
        joined = nn.Linear(linears[0].in_features, sum(linear.out_features for linear in linears), bias=False, device="meta")
        joined.weight = nn.Parameter(torch.cat([linear.weight for linear in linears]), requires_grad=False)
        if linears[0].bias is not None:
            joined.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
        self._product = swap(joined)
        self._sizes = [linear.out_features for linear in linears]
        self._input: torch.Tensor | None = None
        self._parts: list[torch.Tensor | None] = []

    @property
    def weight(self) -> torch.Tensor:
        """Opaque, with the dtype of the originals: some models look at it."""
        weight: torch.Tensor = self._product.weight  # type: ignore[assignment]
        return weight

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Part `index` of the product with x, `[..., in]` -> `[..., out of that part]`, a view."""
        if index == 0 or x is not self._input or self._parts[index] is None:
            self._input, self._parts = x, list(self._product(x).split(self._sizes, dim=-1))
        found = self._parts[index]
        assert found is not None
        self._parts[index] = None
        if index == len(self._sizes) - 1:
            self._input = None
        return found


class JoinedPart(nn.Module):
    def __init__(self, joined: JoinedProjections, index: int, linear: nn.Linear) -> None:
        super().__init__()
        self._joined, self._index = joined, index
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = joined.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._joined.part(self._index, x)


class TorchRMSNorm(nn.Module):
    """Zhang and Sennrich 2019, in torch's one call. `weight` `[width]` is the original's."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (self.weight.shape[0],), self.weight, self.epsilon)


def _join_projections(module: nn.Module, names: tuple[str, ...], dtype: torch.dtype, swap: Swap) -> None:
    linears: list[Any] = [getattr(module, name, None) for name in names]
    if not all(type(linear) is nn.Linear and linear.weight.dtype == dtype for linear in linears):
        return
    if len({linear.in_features for linear in linears}) > 1 or len({linear.bias is None for linear in linears}) > 1:
        return
    joined = JoinedProjections(linears, swap)
    for index, name in enumerate(names):
        setattr(module, name, JoinedPart(joined, index, linears[index]))


def _faster_norm(norm: nn.Module) -> NativeRMSNorm | TorchRMSNorm | None:
    """None if the module does anything else than `weight * x / rms(x)` (Gemma's weight counts from one, others gate or group)."""
    weight = getattr(norm, "weight", None)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
        return None
    candidate = (NativeRMSNorm if NativeRMSNorm.fits(weight) else TorchRMSNorm)(weight, epsilon)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, weight.shape[0], generator=generator).to(weight.dtype) * torch.tensor([[1.0], [1e-3], [30.0]], dtype=weight.dtype)
    try:
        expected = norm(x)
    except (TypeError, RuntimeError):
        return None
    found = candidate(x)
    tolerance = 1e-5 if weight.dtype == torch.float32 else 1e-2
    same = expected.shape == found.shape and expected.dtype == found.dtype
    return candidate if same and bool((expected - found).norm() <= tolerance * expected.norm()) else None
