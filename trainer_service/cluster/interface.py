"""What the job manager sees of a cluster: workers that take training tasks and tell what happens to them. No Ray, no
torch.

`local.LocalPool` runs workers as threads of this process, `ray_pool.RayPool` as Ray actors; both run the same
`worker.Worker`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from trainer_service.training.events import TrainingEvent, TrainingTask


class WorkerLost(Exception):
    """The worker is gone or can't be reached; what it had is lost since the last checkpoint. `reason` is for people.

    `base_model_failed`: it could not load its base model, for a reason that lies in the model or its files.
    """

    def __init__(self, reason: str, out_of_memory: bool = False, base_model_failed: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.out_of_memory, self.base_model_failed = reason, out_of_memory, base_model_failed


class WrongSoftware(WorkerLost):
    """The worker's node runs another version of this package, of Python or of Ray: no job may go there."""


@dataclass(frozen=True)
class WorkerMemory:
    """Of the device where memory is scarcest, or of the process on a CPU."""

    used_bytes: int
    """Most that this worker used since the last measurement."""
    limit_bytes: int
    """Most that it could use now: what it uses and what is free."""


@dataclass(frozen=True)
class WorkerReport:
    """Answer to a poll: everything after the number that was asked for, and how the worker is."""

    last: int
    """Number of the last event; ask for what comes after it next time."""
    events: tuple[TrainingEvent, ...]
    ready: bool
    """The base model is loaded."""
    attempts: Mapping[str, int]
    """What it has, by job."""
    busy_seconds: float = 0.0
    """For how long what it does now has been going on: loading, taking or stopping a job, or one cohort step. 0: it
    waits for work.

    Polls are answered beside the work, so this alone tells a worker whose step hangs from one that trains.
    """
    details: Mapping[str, str] = field(default_factory=dict)
    """Device, dtype, software version, process id."""
    memory: WorkerMemory | None = None
    """None: not measured."""


class WorkerHandle(Protocol):
    """One worker. Every method raises WorkerLost if it is gone."""

    @property
    def id(self) -> str: ...

    @property
    def base_model(self) -> str:
        """Id of the base model that it holds."""
        ...

    async def add(self, task: TrainingTask) -> None:
        """The task joins the cohort at the next step boundary. Adding a job again with a higher attempt replaces it."""
        ...

    async def stop(self, job_id: str, attempt: int) -> None:
        """The job leaves at the next step boundary, with a Stopped event. A job that isn't there is ignored."""
        ...

    async def poll(self, since: int, timeout_seconds: float) -> WorkerReport:
        """Events after `since`, as soon as there are any; an empty report after the time-out. Forgets events up to
        `since`.
        """
        ...

    async def close(self) -> None:
        """End it, whatever it does. Never raises."""
        ...


class WorkerPool(Protocol):
    """Makes workers. Counting them and deciding when is the manager's."""

    async def start(self) -> None: ...

    async def launch(self, base_model: str) -> WorkerHandle:
        """Start a worker that loads this base model. It takes tasks at once; the first report that is `ready` says that
        it is loaded.
        """
        ...

    async def close(self) -> None:
        """End all workers and leave the cluster."""
        ...
