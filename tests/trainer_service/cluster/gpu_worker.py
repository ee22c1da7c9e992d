"""A worker on GPUs that this machine doesn't have: Ray gives them out, `nvml.c` reports their load, and models are
computed on spare devices. Only torch's CUDA functions are replaced.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch

from tests import spare_devices
from tests.trainer_service.training.attention.on_two_devices import loaded_on_spare_devices
from trainer_service.cluster import memory as memory_module
from trainer_service.cluster import ray_actor as ray_actor_module
from trainer_service.cluster.worker_init import WorkerSpec

memory: Any = memory_module
ray_actor: Any = ray_actor_module
torch_cuda: Any = torch.cuda
FACTS = "FACTS_OF_GPU_WORKERS"
"""A directory, to which each worker writes what Ray gave it, as JSON."""
TOTAL_BYTES, TENSOR_BYTES = 80 << 30, 3 << 30
"""Memory of each GPU, and what torch holds on each GPU of a worker."""


class _Cuda:
    """`torch.cuda` on the GPUs that Ray gave to this process."""

    def __init__(self) -> None:
        self.ids = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        self.fraction = 1.0

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return len(self.ids)

    def get_device_properties(self, index: int) -> Any:
        digit = self.ids[index]
        return SimpleNamespace(uuid="-".join(digit * length for length in (8, 4, 4, 4, 12)))

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        self.fraction = fraction

    def get_per_process_memory_fraction(self, index: int) -> float:
        return self.fraction

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return TOTAL_BYTES - TENSOR_BYTES, TOTAL_BYTES

    def memory_reserved(self, index: int = 0) -> int:
        return TENSOR_BYTES

    max_memory_allocated = memory_reserved

    def reset_peak_memory_stats(self, index: int) -> None: ...


class GpuWorker(ray_actor.WorkerActor.__ray_metadata__.modified_class):  # type: ignore[misc]
    """The worker's actor, on `_Cuda`."""

    def __init__(self, spec: WorkerSpec) -> None:
        cuda, load = _Cuda(), ray_actor.load_trainer_in_background
        torch_cuda.set_per_process_memory_fraction = cuda.set_per_process_memory_fraction
        memory.torch = SimpleNamespace(cuda=cuda)

        def loaded(spec: WorkerSpec) -> Any:
            spare_devices.install()  # in the thread that trains
            with loaded_on_spare_devices():
                found = load(spec)
            parameters = found[0].base_model.model.parameters()
            facts = {
                "base_model": spec.base_model,
                "gpus": cuda.ids,
                "fraction": cuda.fraction,
                "limit_bytes": memory.measure_memory().limit_bytes,
                "devices": sorted({str(parameter.device) for parameter in parameters}),
            }
            file = Path(os.environ[FACTS]) / f"{os.getpid()}.new"
            file.write_text(json.dumps(facts))
            file.replace(file.with_suffix(".json"))
            return found

        ray_actor.load_trainer_in_background = loaded
        super().__init__(spec)


GpuWorkerActor: Any = ray.remote(concurrency_groups={"control": 1, "data": 1, "poll": 1}, max_restarts=0)(GpuWorker)
