"""A model computed by its own code in another dtype than its weights have, one module at a time: no second copy of the
weights is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def computed_in(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, each module sees its own floating-point weights in `dtype` while it runs; inputs are the caller's to
    convert. Faster forwards that were put into modules are taken out meanwhile.

    A model whose modules reach for each other's weights, or whose weights are packed integers, may raise in there.
    """
    with ExitStack() as hooks:
        for module in model.modules():
            if "forward" in vars(module) and not hasattr(
                module, "_hf_hook"
            ):  # accelerate's, which moves inputs between devices, stays
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
    """Only the dtypes that models are computed in: quantised weights stay packed, and so do float32 buffers of rotary
    embeddings.
    """
    return value is not None and value.dtype in (torch.float32, torch.bfloat16, torch.float16) and value.dtype != dtype
