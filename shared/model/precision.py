"""Runs a model in another dtype than its weights, converting one module at a time instead of copying all weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def computed_in(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within the block, each module's floating-point weights are in `dtype` while it runs. The caller converts inputs.

    Replaced forwards of modules are removed meanwhile. A model may raise in the block if its modules use each other's
    weights, or its weights are packed integers.
    """
    with ExitStack() as hooks:
        for module in model.modules():
            # accelerate's forward, which moves inputs between devices, stays
            if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
                hooks.callback(setattr, module, "forward", vars(module).pop("forward"))
            if any(_differs(value, dtype) for value in _own_tensors(module)):
                original: dict[tuple[str, str], torch.Tensor] = {}
                hooks.callback(_restore, module, original)
                hooks.callback(module.register_forward_pre_hook(_converter(original, dtype), prepend=True).remove)
                hooks.callback(module.register_forward_hook(_restorer(original), always_call=True).remove)
        yield


def _converter(original: dict[tuple[str, str], torch.Tensor], dtype: torch.dtype) -> Any:
    def convert(module: torch.nn.Module, _: object) -> None:
        for kind in ("_parameters", "_buffers"):
            tensors = getattr(module, kind)
            for name, value in tensors.items():
                if _differs(value, dtype):
                    original[kind, name] = value
                    tensors[name] = (
                        torch.nn.Parameter(value.to(dtype), requires_grad=False)
                        if kind == "_parameters"
                        else value.to(dtype)
                    )

    return convert


def _restorer(original: dict[tuple[str, str], torch.Tensor]) -> Any:
    def restore(module: torch.nn.Module, _inputs: object, _output: object) -> None:
        _restore(module, original)

    return restore


def _restore(module: torch.nn.Module, original: dict[tuple[str, str], torch.Tensor]) -> None:
    for (kind, name), value in original.items():
        getattr(module, kind)[name] = value
    original.clear()


def _own_tensors(module: torch.nn.Module) -> list[torch.Tensor | None]:
    return [*module._parameters.values(), *module._buffers.values()]


def _differs(value: torch.Tensor | None, dtype: torch.dtype) -> bool:
    """Whether a tensor has another floating-point dtype. Quantised weights are never converted."""
    return value is not None and value.dtype in (torch.float32, torch.bfloat16, torch.float16) and value.dtype != dtype
