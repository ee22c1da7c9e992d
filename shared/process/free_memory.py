"""Free memory of a device, within the container's limits."""

from __future__ import annotations

import torch

from shared.process.container_limits import memory_left_bytes


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU as its driver reports it, within the process's part; for the CPU, `available_bytes`."""
    if device.type != "cuda":
        return available_bytes()
    free, total = torch.cuda.mem_get_info(device)
    part = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return int(min(free, max(0, part - torch.cuda.memory_reserved(device))))


def available_bytes() -> int:
    """Main memory available to this process, within the limits of its control groups."""
    import psutil  # may be missing on a GPU machine, which needs only the GPU's free memory

    available = int(psutil.virtual_memory().available)
    left = memory_left_bytes()
    return available if left is None else min(available, left)
