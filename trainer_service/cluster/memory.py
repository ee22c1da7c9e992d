"""Measures the memory that this worker's process uses, and could use, on its GPUs or its machine."""

from __future__ import annotations

import psutil
import torch

from shared.process.free_memory import available_bytes
from trainer_service.cluster.interface import WorkerMemory


def measure_memory() -> WorkerMemory:
    """The memory of the GPU with the least free memory, or of the process. Takes at most a millisecond.

    Resets the peak of each GPU.
    """
    if torch.cuda.is_available() and torch.cuda.memory_reserved() > 0:
        return min(
            (_gpu(index) for index in range(torch.cuda.device_count())),
            key=lambda memory: memory.limit_bytes - memory.used_bytes,
        )
    return _process()


def _gpu(index: int) -> WorkerMemory:
    """The peak memory of tensors. Memory that the allocator has reserved counts as free, and only the process's part of
    the GPU exists.
    """
    free, total = torch.cuda.mem_get_info(index)
    used = torch.cuda.max_memory_allocated(index)
    part = int(total * torch.cuda.get_per_process_memory_fraction(index))
    limit = min(free + torch.cuda.memory_reserved(index), part)
    torch.cuda.reset_peak_memory_stats(index)
    return WorkerMemory(used, max(limit, used))


def _process() -> WorkerMemory:
    used: int = psutil.Process().memory_info().rss
    return WorkerMemory(used, used + available_bytes())
