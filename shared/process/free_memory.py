"""How much memory a device has left, inside the container's limit. Two probes and a minimum."""

from __future__ import annotations

import torch

from shared.process.container_limits import memory_left_bytes


def free_bytes(device: torch.device) -> int:
    """On a GPU what its driver says; on the CPU what the system has available, within the control groups' limits."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else available_bytes()


def available_bytes() -> int:
    """Of this machine's memory, for this process."""
    import psutil  # not on a bare GPU machine, where only the GPU's memory is asked for

    available = int(psutil.virtual_memory().available)
    left = memory_left_bytes()
    return available if left is None else min(available, left)
