"""How much memory this worker's process uses, and how much it could: on its GPUs, or on its machine."""

from __future__ import annotations

import psutil
import torch

from shared.process.free_memory import available_bytes
from trainer_service.cluster.interface import WorkerMemory


def measure_memory() -> WorkerMemory:
    """Microseconds to a millisecond; forgets the peak that it told."""
    if torch.cuda.is_available() and torch.cuda.memory_reserved() > 0:
        return min(
            (_gpu(index) for index in range(torch.cuda.device_count())),
            key=lambda memory: memory.limit_bytes - memory.used_bytes,
        )
    return _process()


def _gpu(index: int) -> WorkerMemory:
    """What tensors took at most. Memory that the allocator holds in reserve is free, too."""
    free, _ = torch.cuda.mem_get_info(index)
    used = torch.cuda.max_memory_allocated(index)
    limit = free + torch.cuda.memory_reserved(index)
    torch.cuda.reset_peak_memory_stats(index)
    return WorkerMemory(used, max(limit, used))


def _process() -> WorkerMemory:
    used: int = psutil.Process().memory_info().rss
    return WorkerMemory(used, used + available_bytes())
