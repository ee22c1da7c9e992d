"""The job manager's interface to a cluster: workers that take training tasks and return events. No Ray, no torch.

`ray_pool.RayPool` runs workers as Ray actors. The tests have a pool that runs the same `worker.Worker` in threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from trainer_service.training.events import TrainingEvent, TrainingTask


class WorkerLost(Exception):
    """The worker is gone or can't be reached; progress since the last checkpoint is lost. `reason` is for users.

    `base_model_failed`: the worker could not load its base model because of the model or its files.
    """

    def __init__(self, reason: str, out_of_memory: bool = False, base_model_failed: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.out_of_memory, self.base_model_failed = reason, out_of_memory, base_model_failed


class WrongSoftware(WorkerLost):
    """The worker's node runs another version of this package, Python or Ray, so it can't be used."""


class NoPlace(WorkerLost):
    """The cluster is too small for the worker, and never grows."""


@dataclass(frozen=True)
class WorkerMemory:
    """Memory of the GPU with the least free memory, or of the process on a CPU."""

    used_bytes: int
    """Memory of this worker: the peak since the last measurement on a GPU, the current use on a CPU."""
    limit_bytes: int
    """The most that the worker could use now: used plus free memory."""
    resident_bytes: int = 0
    """Memory of the process on its machine."""
    device_bytes: int | None = None
    """Memory that the process holds on its GPUs; None without GPUs."""
    device_busy: float | None = None
    """Share of the recent time in which its busiest GPU computed, as NVML has it; None: unknown."""


@dataclass(frozen=True)
class WorkerReport:
    """The answer to a poll: the events after the requested number, and the worker's state."""

    last: int
    """Number of the last event; the next poll asks for events after it."""
    events: tuple[TrainingEvent, ...]
    ready: bool
    """Whether the base model is loaded."""
    attempts: Mapping[str, int]
    """The attempts that the worker has, by job."""
    busy_seconds: float = 0.0
    """How long the current operation has taken: loading, adding or stopping a job, or one cohort step. 0: idle.

    Polls are answered concurrently, so only this distinguishes a worker whose step hangs from one that trains.
    """
    details: Mapping[str, str] = field(default_factory=dict)
    """Device, dtype, software version, process id."""
    memory: WorkerMemory | None = None
    """None: not measured."""
    leaving: bool = False
    """Whether its node is about to go: its jobs should leave it with a checkpoint, and it should get no more."""


class WorkerHandle(Protocol):
    """One worker. Every method raises WorkerLost if it is gone."""

    @property
    def id(self) -> str:
        """A name that is unique within the pool."""

    @property
    def base_model(self) -> str:
        """The id of the worker's base model."""

    async def add(self, task: TrainingTask) -> None:
        """Add a task to the cohort at the next step boundary. A higher attempt of the same job replaces the earlier."""

    async def stop(self, job_id: str, attempt: int) -> None:
        """Stop a job at the next step boundary, with a Stopped event. An unknown job is ignored."""

    async def poll(self, since: int, timeout_seconds: float) -> WorkerReport:
        """Wait for events after `since`; none after the time-out. The worker drops events up to `since`."""

    async def close(self) -> None:
        """End the worker immediately. Never raises."""


class WorkerPool(Protocol):
    """Launches workers. The job manager decides when and how many."""

    async def start(self) -> None:
        """Join the cluster. Raises Unavailable if that is not possible."""

    async def launch(self, base_model: str) -> WorkerHandle:
        """Start a worker that loads this base model. It takes tasks at once; its reports are `ready` after loading."""

    async def close(self) -> None:
        """End all workers and leave the cluster."""
