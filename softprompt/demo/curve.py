"""The loss curve as a picture: training loss and held-out loss of several trainings, and the bare model as a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from softprompt.types.events import Evaluated, JobEvent, ProgressMade

_INK, _GRID = "#333333", "#dddddd"
_COLOURS = ("#2a78b8", "#d2691e", "#3a9a57", "#8e5bb5")


@dataclass
class TrainingRecord:
    """Points are (step, loss). The evaluation at step 0 is of the model without a prompt: no part of the curve."""

    title: str
    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    bare_loss: float | None = None
    rival_losses: dict[str, float | None] = field(default_factory=dict)
    """Held-out losses of the base model with an instruction and with examples; None: not measured."""

    def update(self, event: JobEvent) -> None:
        """Add the losses of an event."""
        if isinstance(event, ProgressMade) and event.progress.step > 0:
            self.train.append((event.progress.step, event.progress.train_loss))
        elif isinstance(event, Evaluated) and event.step > 0 and "loss" in event.metrics:
            self.held_out.append((event.step, event.metrics["loss"]))

    @property
    def last_step(self) -> int:
        """The last step with a loss; 0 if there is none."""
        return max((step for step, _ in [*self.train, *self.held_out]), default=0)


def save_curve(records: Sequence[TrainingRecord], title: str, path: Path) -> Path:
    """Write a PNG; needs matplotlib (the `plot` extra)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), dpi=140, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    start = 0
    for record, colour in zip(records, _COLOURS, strict=False):
        train, held_out = _shifted(record.train, start), _shifted(record.held_out, start)
        axes.plot(*train, color=colour, alpha=0.35, linewidth=1.2, label=f"{record.title}, training batches")
        axes.plot(*held_out, color=colour, linewidth=2, marker="o", markersize=4.5, label=f"{record.title}, held out")
        if start:
            axes.axvline(start, color=_INK, linewidth=0.8, linestyle=":")
        start += record.last_step
    if records and records[0].bare_loss is not None:
        axes.axhline(records[0].bare_loss, color=_INK, linewidth=1, linestyle="--", label="bare model, held out")
    for (title, loss), style in zip(records[0].rival_losses.items() if records else (), ("-.", ":"), strict=False):
        if loss is not None:
            axes.axhline(loss, color=_INK, linewidth=1, linestyle=style, label=f"{title}, held out")
    axes.set(xlabel="optimizer step", ylabel="loss per target token")
    axes.set_title(title, loc="left", color=_INK, fontweight="bold")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _shifted(points: Sequence[tuple[int, float]], start: int) -> tuple[list[int], list[float]]:
    return [start + step for step, _ in points], [loss for _, loss in points]
