"""Errors of the client: those that the services raise (`shared.errors`), and JobFailed."""

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
    """A job has failed or was cancelled; `job` has the details."""

    def __init__(self, job: TuningJob) -> None:
        reason = f"{job.error.code}: {job.error.message}" if job.error else "it was cancelled"
        field = f" (see {job.error.field})" if job.error and job.error.field else ""
        super().__init__(f"{job.name} ended {job.state}: {reason}{field}", job=job.name)
        self.job = job
