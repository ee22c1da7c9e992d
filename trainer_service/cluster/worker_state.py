"""The states of a worker and the reasons for its end, with the names used in metrics and the scheduler's log."""

from __future__ import annotations

from enum import StrEnum


class WorkerState(StrEnum):
    """A worker is able to train only in state READY."""

    PENDING = "pending"
    """Requested from the cluster, which has not placed it yet."""
    STARTING = "starting"
    """Its process runs and loads the base model."""
    READY = "ready"


class WorkerEnd(StrEnum):
    """Why a worker ended."""

    IDLE = "idle"
    DRAINED = "drained"
    FAILED = "failed"
    """It ended before it was ready. `LaunchFailure` says why."""
    LOST = "lost"
    """It was ready, then died or stopped answering."""


class LaunchFailure(StrEnum):
    """Why a worker never became ready."""

    NO_PLACE = "no_place"
    """The cluster did not place it in time."""
    REFUSED = "refused"
    """The cluster could not create it."""
    SOFTWARE = "software"
    """Its node runs other versions of this package, of Python or of Ray than the trainer."""
    TIMEOUT = "timeout"
    """It did not load its base model in time, or stopped answering."""
    OUT_OF_MEMORY = "out_of_memory"
    LOST = "lost"
    """Its process ended while it loaded the base model."""
    INTERNAL = "internal"
    """A fault of the trainer."""
