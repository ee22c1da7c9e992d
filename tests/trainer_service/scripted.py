"""A trainer without a model: each job does as many steps as its spec says, and what its inputs begin with.

Inputs `nan`, `oom`, `huge`, `crash` and `forever` make the job fail, run out of memory unless alone, run out of memory
always, kill the worker's thread, or wait before its last step until the test lets it end. Its state is the number of
steps done, so tests can distinguish a resumed job from one that began anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import torch

from shared.prompt.soft_prompt import SoftPrompt
from shared.values.report import HeldOutAnswer, HeldOutAnswers, ModelAnswer
from shared.values.results import EncodingStatistics
from trainer_service.training.comparison import BARE, CURRENT, FEW_SHOT, INSTRUCTED, Comparison, Estimate
from trainer_service.training.events import (
    Checkpointed,
    Evaluated,
    Failed,
    Finished,
    Started,
    StepDone,
    Stopped,
    TrainingEvent,
    TrainingResult,
    TrainingTask,
)
from trainer_service.training.spec import Metric


class ScriptedTrainer:
    def __init__(
        self,
        hidden_size: int = 8,
        step_seconds: float = 0.002,
        finish: threading.Event | None = None,
        checkpoint_steps: int = 1,
    ) -> None:
        """`finish`: once it is set, inputs `forever` are like any others. `checkpoint_steps`: from one to the next."""
        self._checkpoint_steps = checkpoint_steps
        self._hidden_size, self._step_seconds = hidden_size, step_seconds
        self._finish = finish or threading.Event()
        self._steps: dict[str, int] = {}
        self._tasks: dict[str, TrainingTask] = {}
        self._fresh: list[str] = []
        self._stopping: set[str] = set()
        self.log: list[tuple[str, int, int]] = []
        """(job, attempt, step) of every step done."""

    @property
    def is_idle(self) -> bool:
        return not self._tasks

    def prepare(self, task: TrainingTask, on_progress: Callable[[int], None]) -> TrainingTask:
        on_progress(0)
        return task

    def add(self, task: TrainingTask) -> None:
        self._tasks[task.job_id] = task
        self._steps[task.job_id] = int(task.checkpoint.decode()) if task.checkpoint else 0
        self._fresh.append(task.job_id)

    def stop(self, job_id: str) -> None:
        self._stopping.add(job_id)

    def step(self) -> Sequence[TrainingEvent]:
        time.sleep(self._step_seconds)
        events: list[TrainingEvent] = []
        for job_id in self._fresh:
            task = self._tasks[job_id]
            statistics = EncodingStatistics(num_train=len(task.train), num_validation=len(task.validation))
            events.append(Started(job_id, task.attempt, statistics, self._steps[job_id]))
        self._fresh.clear()
        for task in list(self._tasks.values()):
            events += self._step_job(task, alone=len(self._tasks) == 1)
        return events

    def _step_job(self, task: TrainingTask, *, alone: bool) -> list[TrainingEvent]:
        job_id, attempt, wish = task.job_id, task.attempt, task.train[0].input.split()[0]
        if job_id in self._stopping:
            self._stopping.discard(job_id)
            step = self._leave(job_id)
            return [Stopped(job_id, attempt, step, str(step).encode())]
        if wish == "crash":
            raise RuntimeError("the step thread crashed")
        if wish == "nan":
            self._leave(job_id)
            return [
                Failed(job_id, attempt, "NAN_LOSS", "the loss is not a number", "spec.hyperparameters.learning_rate")
            ]
        if (wish == "oom" and not alone) or wish == "huge":
            self._leave(job_id)
            return [Failed(job_id, attempt, "OUT_OF_MEMORY", "does not fit", retryable=True)]
        total = task.spec.hyperparameters.num_steps
        if wish == "forever" and not self._finish.is_set() and self._steps[job_id] >= total - 1:
            return []
        self._steps[job_id] += 1
        step = self._steps[job_id]
        self.log.append((job_id, attempt, step))
        loss = 1.0 / step
        events: list[TrainingEvent] = [
            StepDone(job_id, attempt, step, total, loss, 0.1, 0.01, 2, 20, self._step_seconds)
        ]
        if step % self._checkpoint_steps == 0:
            events.append(Checkpointed(job_id, attempt, step, str(step).encode()))
        if step < total:
            return events
        metrics = {"loss": loss}
        embeddings = torch.full((task.spec.hyperparameters.num_virtual_tokens, self._hidden_size), float(total))
        result = TrainingResult(
            SoftPrompt(embeddings),
            step,
            total,
            metrics,
            {"loss": 2.0},
            {"loss": 1.5},
            comparisons={
                BARE: _compared(loss, 1.5),
                INSTRUCTED: _compared(loss, 0.3),
                FEW_SHOT: _compared(loss, 0.15),
                **({} if task.current is None else {CURRENT: _compared(loss, 0.5)}),
            },
            current_metrics={} if task.current is None else {"loss": 0.5},
            instructed_metrics={"loss": 0.3},
            few_shot_metrics={"loss": 0.15},
            num_shots=7,
            estimate=Estimate(Metric.LOSS, loss, loss - 0.05, loss + 0.05, 20),
            num_judging=20,
            is_apart=True,
            answers=_answers(task, loss),
        )
        self._leave(job_id)
        return [*events, Evaluated(job_id, attempt, step, metrics, True), Finished(job_id, attempt, result)]

    def _leave(self, job_id: str) -> int:
        del self._tasks[job_id]
        return self._steps.pop(job_id)


def _answers(task: TrainingTask, loss: float) -> HeldOutAnswers:
    """The loss of each example, whose answer has two target tokens."""
    tuned = ModelAnswer(loss=loss, num_targets=2)
    examples = (*task.train, *task.validation)
    return HeldOutAnswers(tuple(HeldOutAnswer(one.line, one.input, one.output or "", tuned) for one in examples))


def _compared(loss: float, other: float) -> Comparison:
    difference = other - loss
    return Comparison(Metric.LOSS, loss, other, difference, difference - 0.05, difference + 0.05, 20)
