"""Small tensors of a step, sent to the device without waiting for it."""

from __future__ import annotations

from typing import Any

import torch


def upload(values: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of `values` on `device`.

    On a GPU it is copied from pinned memory, which PyTorch's allocator keeps until the copy is done. A copy from other
    memory would wait until everything queued on the device has run.
    """
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
