"""Two devices without a GPU: tensors on `spare:0` and `spare:1`, with their numbers in main memory.

Each operation is computed on the CPU. As with GPUs, it raises if its tensors are on different devices; only tensors
without dimensions may be on the CPU. `install` changes torch permanently, so call it in a child process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import backend_registration

NAME = "spare"
_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class SpareTensor(torch.Tensor):
    """A tensor on a spare device; `numbers` is the same one on the CPU."""

    numbers: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, device: torch.device) -> SpareTensor:
        made: SpareTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=device,
        )
        made.numbers = numbers
        return made

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.numbers.untyped_storage()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """What operations take and return, with each leaf changed. torch's own pytree is much slower."""
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(change, part) for part in value])
    return change(value)


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = list[torch.Tensor]()

    def on_cpu(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            tensors.append(leaf)
            return leaf.numbers if isinstance(leaf, SpareTensor) else leaf
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    args_on_cpu = _mapped(on_cpu, args)
    kwargs_on_cpu = {name: _mapped(on_cpu, value) for name, value in kwargs.items()}
    devices = {tensor.device for tensor in tensors if tensor.dim() or tensor.device.type == NAME}
    if len(devices) > 1 and func not in _COPIES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} has some on {devices}")
    device = torch.device(kwargs.get("device") or next(tensor for tensor in tensors if tensor.device in devices).device)
    found = func(*args_on_cpu, **kwargs_on_cpu)
    known = {id(tensor.numbers): tensor for tensor in tensors if isinstance(tensor, SpareTensor)}  # of in-place calls

    def on_device(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or device.type != NAME:
            return leaf
        if (same := known.get(id(leaf))) is None:
            return SpareTensor(leaf.resolve_conj().resolve_neg(), device)  # these bits would be lost
        assert (same.shape, same.stride()) == (leaf.shape, leaf.stride()), f"{func} changes a shape in place"
        return same

    return args[0] if func is _COPIES[0] else _mapped(on_device, found)


class _Module(backend_registration._DummyBackendModule):
    def device_count(self) -> int:
        return 2


_registered = list[torch.library.Library]()


def install() -> None:
    """Makes the devices known to torch. Gradients are then computed in the thread that asks for them."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("aten", "IMPL")
    aten = torch.ops.aten
    for op in (aten.empty.memory_format, aten.empty_strided.default, aten.arange.default, aten.arange.start):
        make = lambda *args, op=op, **kwargs: _computed(op, args, kwargs)  # noqa: E731
        library.impl(op, make, "PrivateUse1")

    def copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
        """What `torch.tensor(..., device=...)` calls."""
        return _computed(_COPIES[0], (target, source), {})

    library.impl("_copy_from", copy_from, "PrivateUse1")
    _registered.append(library)
    torch.autograd.set_multithreading_enabled(False)  # torch's threads are those of one device of a Python backend
