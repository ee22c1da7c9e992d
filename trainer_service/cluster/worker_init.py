"""Loads a base model on this machine's device and makes an empty cohort for it."""

from __future__ import annotations

import logging
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version

import torch

from shared.model import base_model
from shared.process.allocator import tune_allocator
from shared.process.container_limits import usable_cpus
from shared.process.threads import set_torch_threads
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.training.cohort import Cohort
from trainer_service.training.precision import pick_training_dtype

log = logging.getLogger(__name__)

DEFAULT_NUM_THREADS = 2
"""Threads of a worker on another machine, whose number of processors the trainer doesn't know."""

_LOWER_PRIORITY = 5
"""Steps of nice: about a third of the time of a thread of normal priority, if both want the processor."""


@dataclass(frozen=True)
class WorkerSpec:
    """A worker's base model, settings and resources. Plain data that crosses process boundaries."""

    base_model: str
    """The base model's id."""
    source: str
    """Model directory or hub id."""
    settings: WorkerSettings
    num_threads: int = 0
    """Threads of torch on the CPU. 0: two, but no more than the worker's container allows."""
    num_gpus: float = 0
    """GPUs of the worker. With more than one, the model's layers are spread over them; with a part of one, it uses no
    more than that part of the memory.
    """
    device_chosen_by: str = "device"
    """The setting, or the key of the models file, that an error about the device names."""


def software_version() -> str:
    """The versions of this package, Python and Ray, which must be the same on all nodes of a cluster."""
    return f"softprompt {version('softprompt')}, Python {platform.python_version()}, Ray {version('ray')}"


def load_trainer_in_background(spec: WorkerSpec) -> tuple[Cohort, dict[str, str]]:
    """`load_trainer`, at a lower priority of this thread and of those that it starts.

    On a machine whose processors are busy, the trainer's heartbeats, the worker's other threads and a replica go first.
    """
    if sys.platform == "linux":  # elsewhere the priority is the whole process's
        os.nice(_LOWER_PRIORITY)
    return load_trainer(spec)


def load_trainer(spec: WorkerSpec) -> tuple[Cohort, dict[str, str]]:
    """Configure malloc and torch's threads, load the base model; returns an empty cohort and details for reports."""
    tune_allocator()
    set_torch_threads(spec.num_threads or min(DEFAULT_NUM_THREADS, usable_cpus()))
    device = base_model.pick_device(spec.settings.device, spec.device_chosen_by)
    if 0 < spec.num_gpus < 1:
        torch.cuda.set_per_process_memory_fraction(spec.num_gpus)
    device_map = "auto" if spec.num_gpus > 1 else None
    dtype = pick_training_dtype(spec.settings.dtype, device)
    options = spec.settings.model_copy(update={"dtype": dtype})
    loaded = base_model.load(spec.source, options, id=spec.base_model, device_map=device_map)
    cohort = Cohort(loaded, checkpoint_interval_seconds=spec.settings.checkpoint_seconds)
    log.info("base model loaded", extra={"fields": {"base_model": spec.base_model, "device": str(loaded.device)}})
    return cohort, {
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "software": software_version(),
    }
