"""Small training tasks, and a loop that runs a cohort to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from shared.text.template import Template
from tests.trainer_service.training.models import build
from trainer_service.jobs.stored_json import from_plain
from trainer_service.training.cohort import Cohort
from trainer_service.training.events import Finished, StepDone, TrainingEvent, TrainingTask
from trainer_service.training.recipe.defaults import fill
from trainer_service.training.spec import Example, Hyperparameters, TaskKind, TrainingSpec

TEMPLATE = Template(text="In: {input}\nOut:")
LABELS = ("good", "bad", "so-so")
E = TypeVar("E", bound=TrainingEvent)


def generation(count: int = 24, first: int = 0) -> tuple[Example, ...]:
    return tuple(
        Example(line=i + 1, input=f"thing {i * 7 % 31} of {i}", output=f"no {i % 5}")
        for i in range(first, first + count)
    )


def classification(count: int = 24, first: int = 0) -> tuple[Example, ...]:
    return tuple(
        Example(line=i + 1, input=f"review {i * 7 % 31}", label=LABELS[i % 3]) for i in range(first, first + count)
    )


def task(
    job_id: str = "job",
    train: tuple[Example, ...] | None = None,
    validation: tuple[Example, ...] = (),
    checkpoint: bytes | None = None,
    priority: int = 0,
    **hyperparameters: Any,
) -> TrainingTask:
    train = generation() if train is None else train
    kind = TaskKind.CLASSIFICATION if train and train[0].label else TaskKind.GENERATION
    labels = LABELS if kind is TaskKind.CLASSIFICATION else ()
    request = from_plain(
        Hyperparameters, {"num_steps": 20, "num_virtual_tokens": 6, "batch_size": 4, **hyperparameters}
    )
    filled = fill(request, kind, max(4, len(train)), build().info, TEMPLATE, labels)
    spec = TrainingSpec(task=kind, template=TEMPLATE, labels=labels, hyperparameters=filled)
    return TrainingTask(job_id, 1, spec, train, validation, checkpoint=checkpoint, priority=priority)


def run(cohort: Cohort, *tasks: TrainingTask) -> list[TrainingEvent]:
    """All events until the cohort is idle."""
    for one in tasks:
        cohort.add(one)
    events: list[TrainingEvent] = []
    for _ in range(2000):
        if cohort.is_idle:
            cohort.check_integrity()
            return events
        events += cohort.step()
        cohort.check_integrity()
    raise AssertionError(f"the cohort did not become idle; last events: {events[-3:]}")


def of(events: Sequence[TrainingEvent], kind: type[E], job_id: str = "job") -> list[E]:
    return [event for event in events if isinstance(event, kind) and event.job_id == job_id]


def losses(events: Sequence[TrainingEvent], job_id: str = "job") -> list[float]:
    """The loss of each step."""
    return [event.loss for event in of(events, StepDone, job_id)]


def matrix(events: list[TrainingEvent], job_id: str = "job") -> torch.Tensor:
    """The numbers of the job's prefix; for a soft prompt, its matrix."""
    tensors = of(events, Finished, job_id)[0].result.prefix.tensors()
    return next(iter(tensors.values())) if len(tensors) == 1 else torch.cat([one.flatten() for one in tensors.values()])
