"""Free memory of a device, within the container's limits."""

from __future__ import annotations

import torch

from shared.process.container_limits import memory_left_bytes


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU as its driver reports it; for the CPU, `available_bytes`."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else available_bytes()


def available_bytes() -> int:
    """Main memory available to this process, within the limits of its control groups."""
    import psutil  # may be missing on a GPU machine, which needs only the GPU's free memory

    available = int(psutil.virtual_memory().available)
    left = memory_left_bytes()
    return available if left is None else min(available, left)
