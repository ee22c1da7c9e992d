"""Whose fault an exception in a cohort is: the job's own, too little memory's, or the machine's; and what a caller is
told of it.
"""

from __future__ import annotations

import logging

import torch

from shared.errors import InvalidInput, PreconditionFailed, SoftPromptError
from trainer_service.training.events import Failed, TrainingTask
from trainer_service.training.trainee import NonFinite

log = logging.getLogger(__name__)

_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory")
_DEVICE = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]")
"""How libraries below PyTorch begin their messages; PyTorch's own are AcceleratorError."""


class RowTooLarge(SoftPromptError):
    """One example is too large for this worker's memory, even in a pass of its own. `fits`: tokens that would fit, if
    that is known.
    """

    def __init__(self, num_tokens: int, num_virtual_tokens: int, fits: int | None) -> None:
        limit = "" if fits is None else f"; examples of up to {fits} tokens fit"
        super().__init__(
            f"the longest example alone, {num_tokens} tokens behind {num_virtual_tokens} virtual tokens, "
            f"is too large for this worker's memory{limit}"
        )


def failure(task: TrainingTask, error: Exception) -> Failed:
    """What a caller is told about an exception of this job's life."""
    if isinstance(error, NonFinite):
        return Failed(task.job_id, task.attempt, code="NAN_LOSS", message=error.message)
    if isinstance(error, InvalidInput):
        return Failed(
            task.job_id, task.attempt, code="BAD_DATA", message=error.message, field=error.violations[0].field
        )
    if isinstance(error, PreconditionFailed):
        return Failed(task.job_id, task.attempt, code="BAD_DATA", message=error.message)
    if isinstance(error, RowTooLarge):
        return Failed(
            task.job_id, task.attempt, code="OUT_OF_MEMORY", message=error.message, field="spec.dataset", retryable=True
        )
    if is_out_of_memory(error):
        message = "an operation that takes part of one example at a time is too large for this worker's memory"
        return Failed(task.job_id, task.attempt, code="OUT_OF_MEMORY", message=message, retryable=True)
    log.error("job %s failed", task.job_id, exc_info=error)
    message = "training failed unexpectedly; the worker's log has the cause"
    return Failed(task.job_id, task.attempt, code="INTERNAL", message=message, retryable=True)


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError, RowTooLarge)) or any(
        words in str(error) for words in _OUT_OF_MEMORY
    )


def is_machine_fault(error: Exception) -> bool:
    """The device or the machine under this process is broken, for every job alike: after most errors of a GPU its
    context stays unusable, and training itself touches no files, so that an OSError is no job's.
    """
    return is_device_fault(error) or (isinstance(error, OSError) and not is_out_of_memory(error))


def is_device_fault(error: Exception) -> bool:
    """A GPU or its driver is broken."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and str(error).startswith(_DEVICE)
    )
