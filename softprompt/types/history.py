"""What a job's events say about its training, as series: losses, metrics and notes. Plain frozen dataclasses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from softprompt.types.events import Evaluated, JobEvent, Note, ProgressMade


@dataclass(frozen=True)
class HistoryPoint:
    """The training after `step` optimizer steps."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    examples_per_second: float
    time: datetime | None


@dataclass(frozen=True)
class JobHistory:
    """The past of one job, in order."""

    job: str
    points: tuple[HistoryPoint, ...]
    """Training, as the job reported it; not every step is reported."""
    evaluations: tuple[Evaluated, ...]
    """Held-out evaluations."""
    notes: tuple[Note, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each step that is known, for example for `pandas.DataFrame(history.rows())`: `step`, `loss`,
        `learning_rate`, and `held_out_<metric>` where the job was evaluated.
        """
        found: dict[int, dict[str, Any]] = {}
        for point in self.points:
            row = {"step": point.step, "loss": point.loss, "learning_rate": point.learning_rate}
            found.setdefault(point.step, {}).update(row)
        for evaluation in self.evaluations:
            row = {"step": evaluation.step, **{f"held_out_{name}": value for name, value in evaluation.metrics.items()}}
            found.setdefault(evaluation.step, {}).update(row)
        return [found[step] for step in sorted(found)]

    def plot(self, metric: str = "loss", path: str | Path | None = None) -> Any:
        """A matplotlib Figure (extra `plot`) of the training loss and a held-out metric by step, also written to `path`
        if given. Raises InvalidInput for a metric that was not evaluated.
        """
        from softprompt.display.curve import curve_figure

        return curve_figure(self, metric, path)

    def _repr_html_(self) -> str:
        from softprompt.display.html import history_html

        return history_html(self)


def history_of(job: str, events: Iterable[JobEvent]) -> JobHistory:
    """The history that these events tell. After a lost worker a step may occur again; its last report counts."""
    points, evaluations, notes = dict[int, HistoryPoint](), dict[int, Evaluated](), list[Note]()
    for event in events:
        match event:
            case ProgressMade(progress=progress) if progress.step:
                points[progress.step] = HistoryPoint(
                    progress.step,
                    progress.train_loss,
                    progress.learning_rate,
                    progress.grad_norm,
                    progress.examples_per_second,
                    event.time,
                )
            case Evaluated():
                evaluations[event.step] = event
            case Note():
                notes.append(event)
    return JobHistory(
        job,
        tuple(points[step] for step in sorted(points)),
        tuple(evaluations[step] for step in sorted(evaluations)),
        tuple(notes),
    )
