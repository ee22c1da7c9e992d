"""Finds what would make the host wait for a GPU: values read back from tensors, and shapes that depend on values. Works
on a CPU.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.masked_select.default,
}


class HostWaits(TorchDispatchMode):
    """`found`: the line of this project that asked, for each time."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WAITING:
            ours = [frame for frame in traceback.extract_stack()[:-1] if "_service/" in frame.filename]
            self.found.append(f"{ours[-1].filename.rsplit('/', 1)[-1]}: {ours[-1].line}" if ours else str(func))
        return func(*args, **(kwargs or {}))
