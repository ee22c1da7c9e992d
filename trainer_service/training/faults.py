"""Classifies exceptions in a cohort: a fault of the job, too little memory, or a fault of the machine."""

from __future__ import annotations

import logging
from functools import partial

import torch

from shared.errors import InvalidInput, PreconditionFailed, SoftPromptError
from trainer_service.training.events import Failed, TrainingTask
from trainer_service.training.trainee import NonFinite

log = logging.getLogger(__name__)

_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory")
_DEVICE = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]")
"""Prefixes of error messages of libraries below PyTorch; PyTorch itself raises AcceleratorError."""


class RowTooLarge(SoftPromptError):
    """An example too large for this worker's memory, even alone. `fits`: tokens that would fit, if known."""

    def __init__(self, num_tokens: int, num_virtual_tokens: int, fits: int | None) -> None:
        limit = "" if fits is None else f"; examples of up to {fits} tokens fit"
        super().__init__(
            f"the longest example alone, {num_tokens} tokens behind {num_virtual_tokens} virtual tokens, "
            f"is too large for this worker's memory{limit}"
        )


def failure(task: TrainingTask, error: Exception) -> Failed:
    """The Failed event for an exception of this job."""
    failed = partial(Failed, task.job_id, task.attempt)
    if isinstance(error, NonFinite):
        return failed("NAN_LOSS", error.message)
    if isinstance(error, InvalidInput):
        return failed("BAD_DATA", error.message, error.violations[0].field)
    if isinstance(error, PreconditionFailed):
        return failed("BAD_DATA", error.message)
    if isinstance(error, RowTooLarge):
        return failed("OUT_OF_MEMORY", error.message, "spec.dataset", retryable=True)
    if is_out_of_memory(error):
        message = "an operation on part of a single example is too large for this worker's memory"
        return failed("OUT_OF_MEMORY", message, retryable=True)
    log.error("job %s failed", task.job_id, exc_info=error)
    return failed("INTERNAL", "training failed unexpectedly; the worker's log has the cause", retryable=True)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, or a row is known not to fit."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError, RowTooLarge)) or any(
        words in str(error) for words in _OUT_OF_MEMORY
    )


def is_machine_fault(error: Exception) -> bool:
    """Whether the device or the machine is broken, for all jobs.

    After most errors of a GPU its context stays unusable. Training touches no files, so no job can cause an OSError.
    """
    return is_device_fault(error) or (isinstance(error, OSError) and not is_out_of_memory(error))


def is_device_fault(error: Exception) -> bool:
    """Whether a GPU or its driver is broken."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and str(error).startswith(_DEVICE)
    )
