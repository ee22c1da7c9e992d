"""How much memory this worker's process uses, and how much it could: on its GPUs, or on its machine."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from trainer_service.cluster.interface import WorkerMemory

_CGROUP = Path("/sys/fs/cgroup")


def measure_memory() -> WorkerMemory:
    """Microseconds to a millisecond; forgets the peak that it told."""
    if torch.cuda.is_available() and torch.cuda.memory_reserved() > 0:
        return min((_gpu(index) for index in range(torch.cuda.device_count())), key=lambda memory: memory.limit_bytes - memory.used_bytes)
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
    available: int = psutil.virtual_memory().available
    in_container = _left_in_container()
    return WorkerMemory(used, used + (available if in_container is None else min(available, in_container)))


def _left_in_container() -> int | None:
    """Bytes until the memory limit of the control group, page cache that can be dropped not counted. None: no limit, or not Linux."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        current = int((_CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - current + int(statistics.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
