"""Errors of the client: the tree of `shared.errors`, as the services raised them, and what only a caller can meet."""

from __future__ import annotations

from shared.errors import (
    AlreadyExists,
    Cancelled,
    Conflict,
    DamagedBlob,
    DeadlineExceeded,
    FieldViolation,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    PreconditionFailed,
    SoftPromptError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from softprompt.types.jobs import TuningJob

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "Conflict",
    "DamagedBlob",
    "DeadlineExceeded",
    "FieldViolation",
    "InvalidInput",
    "JobFailed",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "PreconditionFailed",
    "SoftPromptError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
]


class JobFailed(SoftPromptError):
    """A job that was waited for ended without success; `job` has all of it."""

    def __init__(self, job: TuningJob) -> None:
        reason = f"{job.error.code}: {job.error.message}" if job.error else "it was cancelled"
        field = f" (see {job.error.field})" if job.error and job.error.field else ""
        super().__init__(f"{job.name} ended {job.state}: {reason}{field}", job=job.name)
        self.job = job
