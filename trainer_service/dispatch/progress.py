"""One attempt of one job, as seen from the training events that its worker sends. Pure: no clock, no store.

Steps are many and events are stored for good, so progress is told at most once in a while; everything else is told at
once.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

from shared.values.results import EncodingStatistics, TuningProgress
from trainer_service.jobs.model import CheckpointStored, Evaluation, EventPayload, Note
from trainer_service.jobs.record import to_datetime
from trainer_service.training.events import Checkpointed, Evaluated, Preparing, Started, StepDone, TrainingEvent

_SMOOTHING = 0.1
"""Weight of the newest step in the running averages of speed."""


class AttemptProgress:
    """`progress` is always the newest; `absorb` says which events of the job are to be stored now."""

    def __init__(self, attempt: int, progress: TuningProgress, progress_seconds: float) -> None:
        self.attempt = attempt
        self.progress = progress
        self.statistics: EncodingStatistics | None = None
        self.current_version = ""
        """What this attempt is compared with for the gate."""
        self.is_dirty = False
        """`progress` holds what was not told yet."""
        self._progress_seconds = progress_seconds
        self._told_at = -math.inf
        self._has_told_skips = False
        self._seconds_per_step = 0.0

    def absorb(self, event: TrainingEvent, now: float) -> list[EventPayload]:
        """Take one event in. `now`: seconds since the epoch."""
        match event:
            case Started():
                self.statistics = event.statistics
                self.progress = replace(self.progress, step=event.step, num_prepared=0, num_examples=0)
                return [Note(text=text) for text in _starting(event, self.statistics)]
            case Preparing():
                self.progress = replace(self.progress, num_prepared=event.num_prepared, num_examples=event.num_examples)
                self.is_dirty = True
                return self.flush(now) if now - self._told_at >= self._progress_seconds else []
            case StepDone():
                return self._step(event, now)
            case Evaluated():
                best_step = event.step if event.is_best else self.progress.best_step
                before = self.flush(now)  # the steps up to here; what was measured comes once, as the evaluation
                self.progress = replace(self.progress, metrics=dict(event.metrics), best_step=best_step)
                return [*before, Evaluation(step=event.step, metrics=dict(event.metrics), is_best=event.is_best)]
            case Checkpointed():
                return [CheckpointStored(step=event.step)]
            case _:
                return self.flush(now)

    def flush(self, now: float) -> list[EventPayload]:
        """What was held back."""
        if not self.is_dirty:
            return []
        self._told_at, self.is_dirty = now, False
        return [self.progress]

    def _step(self, event: StepDone, now: float) -> list[EventPayload]:
        before = self._seconds_per_step or event.step_seconds
        self._seconds_per_step = before + _SMOOTHING * (event.step_seconds - before)
        left = max(0, event.num_steps - event.step) * self._seconds_per_step
        progress = replace(
            self.progress,
            step=event.step,
            num_steps=event.num_steps,
            num_skipped_steps=event.total_skipped,
            learning_rate=event.learning_rate,
            examples_per_second=event.num_examples / self._seconds_per_step if self._seconds_per_step > 0 else 0.0,
            estimated_end_time=to_datetime(now) + timedelta(seconds=min(left, 1e8)),
        )
        if math.isfinite(event.loss) and math.isfinite(event.grad_norm):
            progress = replace(progress, train_loss=event.loss, grad_norm=event.grad_norm)
        self.progress = progress
        self.is_dirty = True
        told: list[EventPayload] = []
        if event.num_skipped and not self._has_told_skips:
            self._has_told_skips = True
            told.append(
                Note(
                    text=f"step {event.step} was skipped: its loss or gradient is not finite; further ones are counted"
                )
            )
        is_due = now - self._told_at >= self._progress_seconds or event.step == event.num_steps
        return [*told, *self.flush(now)] if is_due else told


def _starting(event: Started, statistics: EncodingStatistics) -> list[str]:
    """What a person should know when an attempt begins."""
    if event.restart_reason:
        return [f"its checkpoint can't be used, so training starts again from step 0: {event.restart_reason}"]
    return [f"goes on from step {event.step}"] if event.step else [*event.notes, *_data_notes(statistics)]


def _data_notes(statistics: EncodingStatistics) -> list[str]:
    """What a person should know of the data before the first step."""
    told = list[str]()
    if statistics.num_dropped or statistics.num_truncated:
        told.append(
            f"examples that are too long: {statistics.num_dropped} are left out, the inputs of {statistics.num_truncated} are cut"
        )
    if statistics.num_overlapping:
        told.append(
            f"the inputs of {statistics.num_overlapping} of the {statistics.num_validation} held-out examples also stand in the training "
            "data: held-out scores say little about new inputs"
        )
    return told
