"""Training as it happens: a live bar on a terminal, a line now and then elsewhere (or nothing at all).

Both are fed a job's events and show the step, the loss, examples a second, the time left and the last held-out loss.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from softprompt.types.tuning import Evaluated, JobEvent, JobState, Note, ProgressMade, StateChanged, TuningJob, TuningProgress

PLAIN_LINE_SECONDS = 5.0


class TrainingDisplay(Protocol):
    """A context manager; `update` is called with every event, from any thread."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    def update(self, event: JobEvent) -> None: ...


def training_display(console: Console, title: str, plain_lines: bool = False) -> TrainingDisplay:
    """A live bar if the console is a terminal; else lines if they are wanted, or silence."""
    if console.is_terminal:
        return LiveTraining(console, title)
    return PlainTraining(console, title) if plain_lines else SilentTraining()


class SilentTraining:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def update(self, event: JobEvent) -> None:
        return None


class PlainTraining(SilentTraining):
    """A line every few seconds, for logs."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._next_line = 0.0

    def update(self, event: JobEvent) -> None:
        match event:
            case StateChanged(job=job):
                self._print(_state_text(job))
            case Evaluated(step=step, metrics=metrics):
                self._print(f"step {step}: held-out loss {_metric(metrics.get('loss'))}")
            case Note(text=text):
                self._print(text)
            case ProgressMade(progress=progress) if progress.step and self._is_due(progress):
                self._next_line = time.monotonic() + PLAIN_LINE_SECONDS
                self._print(
                    f"step {progress.step}/{progress.num_steps}  loss {progress.train_loss:.3f}  "
                    f"{progress.examples_per_second:.1f} examples/s  {time_left(progress, event.time)} left"
                )

    def _is_due(self, progress: TuningProgress) -> bool:
        return time.monotonic() >= self._next_line or progress.step >= progress.num_steps

    def _print(self, text: str) -> None:
        self._console.print(f"{self._title}: {text}", markup=False)


class LiveTraining:
    def __init__(self, console: Console, title: str) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("step {task.completed:.0f}/{task.fields[steps]}"),
            TextColumn("loss [bold]{task.fields[loss]}[/]"),
            TextColumn("held-out [bold green]{task.fields[held_out]}[/]"),
            TextColumn("{task.fields[speed]} examples/s"),
            TextColumn("{task.fields[left]} left"),
            console=console,
        )
        self._title = title
        self._task = self._progress.add_task(title, total=None, steps="?", loss="-", held_out="-", speed="-", left="-")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def update(self, event: JobEvent) -> None:
        match event:
            case StateChanged(job=job):
                self._progress.update(self._task, description=f"{self._title}: {_state_text(job)}")
                if job.progress is not None:
                    self._show(job.progress, event.time)
                if job.state.is_final:
                    self._progress.update(self._task, left="0:00")
            case ProgressMade(progress=progress):
                self._show(progress, event.time)
            case Evaluated(metrics=metrics):
                self._progress.update(self._task, held_out=_metric(metrics.get("loss")))
            case Note(text=text):
                self._progress.console.print(text, markup=False)

    def _show(self, progress: TuningProgress, now: datetime | None) -> None:
        if not progress.step:
            return
        self._progress.update(
            self._task,
            completed=progress.step,
            total=progress.num_steps or None,
            steps=progress.num_steps or "?",
            loss=f"{progress.train_loss:.3f}",
            speed=f"{progress.examples_per_second:.1f}",
            left=time_left(progress, now),
        )
        if "loss" in progress.metrics:
            self._progress.update(self._task, held_out=_metric(progress.metrics["loss"]))


def time_left(progress: TuningProgress, now: datetime | None) -> str:
    """`now` on the trainer's clock, which made the estimate; this machine's may show another time."""
    if progress.estimated_end_time is None:
        return "-"
    seconds = max(0, round((progress.estimated_end_time - (now or datetime.now(UTC))).total_seconds()))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _metric(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _state_text(job: TuningJob) -> str:
    if job.state is JobState.QUEUED and job.queue_position:
        return f"queued, {job.queue_position} ahead"
    return job.state.value.lower()
