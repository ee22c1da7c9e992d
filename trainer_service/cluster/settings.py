"""Settings of workers. `trainer_service.config` inherits them; nothing here reads the environment or imports Ray."""

from __future__ import annotations

from pydantic import Field

from shared.config import SettingsPart, TracingSettings
from shared.model.options import ModelOptions


class MaxWorkers(SettingsPart):
    """The number of workers, which both the dispatcher and the pool need."""

    max_workers: int = Field(default=1, ge=1, le=1024)
    """Most workers at once, of all trainers that share a job database; a worker takes a GPU or CPU cores."""


class WorkerSettings(ModelOptions, MaxWorkers, TracingSettings):
    """Settings of a pool and of its workers. Plain data that crosses process boundaries."""

    gpus_per_worker: int = Field(default=1, ge=1, le=64)
    """GPUs of one worker; with several, the layers of the base model are spread over them."""
    cpus_per_worker: int = Field(default=0, ge=0, le=1024)
    """CPU cores of a worker without GPU, and threads of each worker. 0: the container's processors divided by
    max_workers; in an external Ray cluster two, or one if the worker's container has a CPU quota below two.
    """
    checkpoint_seconds: float = Field(default=10, gt=0, le=3_600)
    """Time between two checkpoints of a job."""
