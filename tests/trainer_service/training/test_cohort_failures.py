"""Failures in a cohort: of one job, with the reason and whether to retry, or of the machine, which fails no job."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import torch

from tests.trainer_service.training.models import build
from tests.trainer_service.training.tasks import generation, losses, of, run, task
from trainer_service.training import passes
from trainer_service.training.cohort import Cohort
from trainer_service.training.compute import backward
from trainer_service.training.events import (
    Failed,
    Finished,
    StepDone,
)
from trainer_service.training.spec import Example

BASE = build()


def test_a_job_that_turns_nan_fails_alone() -> None:
    base = build()
    cohort = Cohort(base)
    (poison,) = base.tokenizer("~", add_special_tokens=False)["input_ids"]
    base.embedding_table[poison] = float("nan")
    bad = task(
        "bad",
        train=tuple(Example(line=line, input=f"thing ~ {line}", output="no") for line in range(1, 8)),
        num_steps=20,
    )
    events = run(cohort, task("good"), bad)
    failed = of(events, Failed, "bad")[0]
    assert (failed.code, failed.retryable) == ("NAN_LOSS", False)
    assert "step" in failed.message
    assert losses(events, "good") == pytest.approx(losses(run(Cohort(BASE), task("good")), "good"), rel=1e-3)


def test_data_that_does_not_fit_the_model_fails_its_job_with_the_line() -> None:
    long = (*generation(4), Example(line=9, input="x" * 300, output="y"), *generation(2, 10))
    events = run(Cohort(BASE), task("good"), task("long", train=long))
    failed = of(events, Failed, "long")[0]
    assert (failed.code, failed.field) == ("BAD_DATA", "dataset line 9")
    assert "room for 250" in failed.message
    assert of(events, Finished, "good")


def test_a_pass_that_raises_is_repeated_for_each_job_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = backward

    def flaky(base_model: Any, forward: Any, parts: Any, token_budget: int) -> torch.Tensor:
        if any(part.trainee.num_virtual_tokens == 13 for part in parts):
            raise RuntimeError("a row that no kernel takes")
        return original(base_model, forward, parts, token_budget)

    monkeypatch.setattr(passes, "backward", flaky)
    events = run(Cohort(BASE), task("good"), task("bad", num_virtual_tokens=13))
    failed = of(events, Failed, "bad")[0]
    assert (failed.code, failed.retryable) == ("INTERNAL", True)
    assert "kernel" not in failed.message
    assert "a row that no kernel takes" in caplog.text
    assert len(of(events, StepDone, "good")) == 20


def test_running_out_of_memory_halves_the_budget_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    original, budgets = backward, []

    def small(base_model: Any, forward: Any, parts: Any, token_budget: int) -> torch.Tensor:
        budgets.append(token_budget)
        if token_budget > 300:
            raise torch.OutOfMemoryError("too much")
        return original(base_model, forward, parts, token_budget)

    monkeypatch.setattr(passes, "backward", small)
    cohort = Cohort(BASE, token_budget=1024)
    assert of(run(cohort, task()), Finished)
    assert budgets[:3] == [1024, 512, 256]
    assert cohort.token_budget == 256


FAULTS = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_of_the_machine_is_no_jobs_failure(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the pass of all jobs, which is not repeated for each alone, and in the work of a single job."""
    calls = []

    def broken(*_: object) -> None:
        calls.append(1)
        raise fault

    monkeypatch.setattr(passes, "backward", broken)
    with pytest.raises(type(fault)) as raised:
        run(Cohort(BASE), task("one"), task("two"))
    assert raised.value is fault
    assert len(calls) == 1
    monkeypatch.setattr("trainer_service.training.recipe.leaves.initial_matrix", broken)
    with pytest.raises(type(fault)):
        run(Cohort(BASE), task("one"))


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error: out of memory")],
    ids=str,
)
def test_a_device_that_is_full_is_not_broken(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(passes, "backward", full)
    failed = of(run(Cohort(BASE), task()), Failed)[0]
    assert (failed.code, failed.retryable) == ("OUT_OF_MEMORY", True)


def test_the_users_own_errors_are_not_to_be_tried_again() -> None:
    long = (*generation(4), Example(line=9, input="x" * 300, output="y"))
    events = run(Cohort(BASE), task("long", train=long), task("empty", train=()))
    assert [(event.code, event.retryable) for event in events if isinstance(event, Failed)] == [("BAD_DATA", False)] * 2
