"""A tuning job while it runs: state, step, loss, held-out loss, speed and time left, from the job's events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console

from shared.text.counted import counted
from shared.values.enums import JobState
from shared.values.results import TuningProgress
from softprompt.display.status import LINE_SECONDS, clock_text, status_display
from softprompt.report.words import loss
from softprompt.types.events import Evaluated, JobEvent, Note, ProgressMade, StateChanged
from softprompt.types.jobs import TuningJob


@contextmanager
def training_display(
    console: Console, title: str, line_seconds: float = LINE_SECONDS
) -> Iterator[Callable[[JobEvent], None]]:
    """A function to call with each event, from any thread. Without a terminal: a line every `line_seconds`."""
    status = TrainingStatus(title)
    with status_display(console, status, line_seconds) as display:

        def on_event(event: JobEvent) -> None:
            had_details = bool(status.details)
            status.update(event)
            if isinstance(event, Note):
                display.note(f"{title}: {event.text}")
            elif isinstance(event, StateChanged) or (status.details and not had_details):
                display.show()

        yield on_event


class TrainingStatus:
    """What the events so far say."""

    def __init__(self, name: str) -> None:
        self._name, self._state = name, ""
        self._progress: TuningProgress | None = None
        self._held_out: float | None = None
        self._is_over = self._is_study = False
        self._end: float | None = None
        """On this machine's monotonic clock."""

    def update(self, event: JobEvent) -> None:
        """Take over what the event says."""
        match event:
            case StateChanged(job=job):
                self._state = _state_text(job)
                self._is_study = is_distillation(job)
                self._take(job.progress, event.time)
                if job.state.is_final:
                    self._end, self._is_over = time.monotonic(), True
            case ProgressMade(progress=progress):
                self._take(progress, event.time)
            case Evaluated(metrics=metrics):
                self._held_out = metrics.get("loss", self._held_out)

    @property
    def title(self) -> str:
        """See Status."""
        return f"{self._name}: {self._state}" if self._state else self._name

    @property
    def fraction(self) -> float | None:
        """See Status."""
        progress = self._progress
        if progress is None:
            return None
        if is_preparing(progress):
            return progress.num_prepared / progress.num_examples
        return progress.step / progress.num_steps if progress.num_steps else None

    @property
    def details(self) -> list[str]:
        """See Status."""
        progress = self._progress
        if progress is None:
            return []
        if is_preparing(progress):
            return [preparing_text(progress, self._is_study)]
        if not progress.step:
            return []
        found = [f"step {progress.step}/{progress.num_steps or '?'}", f"loss {loss(progress.train_loss)}"]
        is_evaluating = not self._is_over and (progress.step == progress.num_steps or progress.num_models > 0)
        left = None if self._end is None else self._end - time.monotonic()
        if left is not None and (left > 0 or not is_evaluating):
            found.insert(1, f"{clock_text(left)} left")
        if is_evaluating:
            found.insert(1, evaluating_text(progress))
        if self._held_out is not None:
            found.append(f"held-out {loss(self._held_out)}")
        return [*found, f"{progress.examples_per_second:.1f} examples/s"]

    def _take(self, progress: TuningProgress | None, now: datetime | None) -> None:
        """`now` is the trainer's clock, which made the estimate; this machine's may show another time."""
        if progress is None:
            return
        self._held_out = progress.metrics.get("loss", self._held_out)
        self._end = None
        if progress.estimated_end_time is not None:
            self._end = time.monotonic() + (progress.estimated_end_time - (now or datetime.now(UTC))).total_seconds()
        self._progress = progress


def is_distillation(job: TuningJob) -> bool:
    """Whether the job prepares its data by asking questions about a text."""
    return job.spec is not None and job.spec.distillation is not None


def is_preparing(progress: TuningProgress) -> bool:
    """Whether the job still counts the tokens of its examples."""
    return progress.num_examples > 0 and not progress.step


def preparing_text(progress: TuningProgress, is_study: bool) -> str:
    """How many examples of a job that `is_preparing` are counted; in a distillation, how many questions are asked."""
    if is_study:
        return f"self-study {progress.num_prepared}/{progress.num_examples}"
    return f"prepared {progress.num_prepared}/{counted(progress.num_examples, 'example')}"


def evaluating_text(progress: TuningProgress) -> str:
    """What the final evaluation does."""
    if not progress.num_models:
        return "evaluating"
    if progress.num_measured == progress.num_models:
        return "evaluating: writing answers"
    return f"evaluating: {progress.num_measured} of {progress.num_models} models measured"


def _state_text(job: TuningJob) -> str:
    if job.state is JobState.QUEUED and job.queue_position:
        return f"queued, {job.queue_position} ahead"
    return job.state.value.lower()
