"""Turns the training events of one attempt of a job into the job's stored events. Pure: no clock, no store.

Stored events are never removed while the job runs and steps are many, so progress is stored at most once every
`progress_seconds`. All other events are stored at once.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta

from shared.values.results import EncodingStatistics, TuningProgress
from trainer_service.jobs.model import Checkpoint, Evaluation, EventPayload, Note
from trainer_service.jobs.record import to_datetime
from trainer_service.training.events import (
    Checkpointed,
    Evaluated,
    Judging,
    Preparing,
    Started,
    StepDone,
    TrainingEvent,
)

_SMOOTHING = 0.1
"""Weight of the newest step in the running averages of speed."""


class AttemptProgress:
    """The newest progress of one attempt. `absorb` returns the job events that must be stored now."""

    def __init__(self, attempt: int, progress: TuningProgress, progress_seconds: float) -> None:
        self.attempt = attempt
        self.progress = progress
        self.statistics: EncodingStatistics | None = None
        self.current_version = ""
        """The version that the publication gate compares this attempt with."""
        self.foreign_job: str | None = None
        """As in TrainingTask."""
        self.is_dirty = False
        """Whether `progress` has changed since it was last returned for storing."""
        self._progress_seconds = progress_seconds
        self._returned_at = -math.inf
        self._stored_step: int | None = None
        self._has_noted_skips = False
        self._seconds_per_step = 0.0

    def absorb(self, event: TrainingEvent, now: float) -> list[EventPayload]:
        """Applies one event and returns the job events to store now. `now`: seconds since the epoch."""
        match event:
            case Started():
                self.statistics = event.statistics
                self.progress = replace(self.progress, step=event.step, num_prepared=0, num_examples=0, num_models=0)
                return [Note(text=text) for text in _starting(event, self.statistics)]
            case Preparing():
                self.progress = replace(self.progress, num_prepared=event.num_prepared, num_examples=event.num_examples)
                self.is_dirty = True
                return self.flush(now) if self._is_due(now) else []
            case StepDone():
                return self._step(event, now)
            case Evaluated():
                best_step = event.step if event.is_best else self.progress.best_step
                before = self.flush(now)  # the steps before; the metrics are stored only once, in the evaluation
                self.progress = replace(self.progress, metrics=dict(event.metrics), best_step=best_step)
                return [*before, Evaluation(step=event.step, metrics=dict(event.metrics), is_best=event.is_best)]
            case Judging():
                self.progress = replace(
                    self.progress,
                    num_measured=event.num_measured,
                    num_models=event.num_models,
                    estimated_end_time=_after(now, event.seconds_left),
                )
                self.is_dirty = True
                return self.flush(now)
            case Checkpointed() if event.step == self._stored_step:
                return []  # stored again, at the end of training or before a pause
            case Checkpointed():
                self._stored_step = event.step
                return [Checkpoint(step=event.step)]
            case _:
                return self.flush(now)

    def _is_due(self, now: float) -> bool:
        """Also after the clock was set back."""
        return not 0 <= now - self._returned_at < self._progress_seconds

    def flush(self, now: float) -> list[EventPayload]:
        """Returns the progress that was not returned yet."""
        if not self.is_dirty:
            return []
        self._returned_at, self.is_dirty = now, False
        return [self.progress]

    def _step(self, event: StepDone, now: float) -> list[EventPayload]:
        before = self._seconds_per_step or event.step_seconds
        self._seconds_per_step = before + _SMOOTHING * (event.step_seconds - before)
        left = max(0, event.num_steps - event.step) * self._seconds_per_step + event.evaluation_seconds
        progress = replace(
            self.progress,
            step=event.step,
            num_steps=event.num_steps,
            num_skipped_steps=event.total_skipped,
            learning_rate=event.learning_rate,
            examples_per_second=event.num_examples / self._seconds_per_step if self._seconds_per_step > 0 else 0.0,
            estimated_end_time=_after(now, left),
        )
        if (math.isfinite(event.loss) and math.isfinite(event.grad_norm)) or not self.progress.step:
            progress = replace(progress, train_loss=event.loss, grad_norm=event.grad_norm)
        self.progress = progress
        self.is_dirty = True
        notes: list[EventPayload] = []
        if event.num_skipped and not self._has_noted_skips:
            self._has_noted_skips = True
            text = f"step {event.step} was skipped: its loss or gradient is not finite; further ones are counted"
            notes.append(Note(text=text))
        is_due = self._is_due(now) or event.step == event.num_steps
        return [*notes, *self.flush(now)] if is_due else notes


def _after(now: float, seconds: float) -> datetime:
    return to_datetime(now) + timedelta(seconds=min(seconds, 1e8))


def _starting(event: Started, statistics: EncodingStatistics) -> list[str]:
    """Notes at the beginning of an attempt."""
    if event.restart_reason:
        return [f"its checkpoint can't be used, so training starts again from step 0: {event.restart_reason}"]
    return [f"resumes from step {event.step}"] if event.step else [*event.notes, *_data_notes(statistics)]


def _data_notes(statistics: EncodingStatistics) -> list[str]:
    """Notes about the data before the first step."""
    notes = list[str]()
    if statistics.num_dropped or statistics.num_truncated:
        notes.append(
            f"examples that are too long: {statistics.num_dropped} dropped, the inputs of {statistics.num_truncated} "
            "truncated"
        )
    if statistics.num_overlapping:
        notes.append(
            f"the inputs of {statistics.num_overlapping} of the {statistics.num_validation} held-out examples are also "
            "in the training data: held-out scores say little about new inputs"
        )
    return notes
