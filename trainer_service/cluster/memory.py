"""Measures the memory that this worker's process uses and could use on its GPUs or its machine, and the GPUs' load."""

from __future__ import annotations

import time

import psutil
import torch

from shared.process.free_memory import available_bytes
from trainer_service.cluster import nvml
from trainer_service.cluster.interface import WorkerMemory

_LOAD_SECONDS = 5.0
"""How long a measured load of the GPUs counts: NVML takes some milliseconds, and polls are frequent."""


def measure_memory() -> WorkerMemory:
    """Memory of the fullest GPU, or of the process, in some milliseconds at most. Resets the peak of each GPU."""
    resident: int = psutil.Process().memory_info().rss
    if not (torch.cuda.is_available() and torch.cuda.memory_reserved() > 0):
        return WorkerMemory(resident, resident + available_bytes(), resident)
    indices = range(torch.cuda.device_count())
    used, limit = min((_gpu(index) for index in indices), key=lambda memory: memory[1] - memory[0])
    device = sum(torch.cuda.memory_reserved(index) for index in indices)
    return WorkerMemory(used, limit, resident, device, _load.current())


def _gpu(index: int) -> tuple[int, int]:
    """The peak memory of tensors, and the most possible. Memory that the allocator has reserved counts as free, and
    only the process's part of the GPU exists.
    """
    free, total = torch.cuda.mem_get_info(index)
    used = torch.cuda.max_memory_allocated(index)
    part = int(total * torch.cuda.get_per_process_memory_fraction(index))
    limit = min(free + torch.cuda.memory_reserved(index), part)
    torch.cuda.reset_peak_memory_stats(index)
    return used, max(limit, used)


class _Load:
    """The load of the busiest GPU, at most some seconds old."""

    def __init__(self) -> None:
        self._read_at = float("-inf")
        self._value: float | None = None

    def current(self) -> float | None:
        """Between 0 and 1; None if the driver does not say."""
        now = time.monotonic()
        if now - self._read_at >= _LOAD_SECONDS:
            self._read_at = now
            properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
            self._value = nvml.busiest(str(device.uuid) for device in properties)
        return self._value


_load = _Load()
