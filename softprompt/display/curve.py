"""The curves of one job as a matplotlib figure."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.close_names import did_you_mean
from shared.errors import InvalidInput, PreconditionFailed

if TYPE_CHECKING:
    from softprompt.types.history import JobHistory


def curve_figure(history: JobHistory, metric: str, path: str | Path | None) -> Any:
    """Training loss and a held-out metric by step. Raises InvalidInput, or PreconditionFailed without matplotlib."""
    known = sorted({name for evaluation in history.evaluations for name in evaluation.metrics})
    if metric not in {*known, "loss"}:
        raise InvalidInput.of("metric", f"{metric!r} was not evaluated{did_you_mean(metric, known)}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise PreconditionFailed("plots need matplotlib: pip install 'softprompt[plot]'") from None

    class Curve(Figure):
        """Notebooks show it, also without %matplotlib."""

        def _repr_png_(self) -> bytes:
            content = BytesIO()
            self.savefig(content, format="png")
            return content.getvalue()

    figure = Curve(figsize=(7, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if points := history.points:
        axes.plot([point.step for point in points], [point.loss for point in points], label="training loss", alpha=0.6)
    held_out = [(item.step, item.metrics[metric]) for item in history.evaluations if metric in item.metrics]
    if held_out:
        other = axes if metric == "loss" else axes.twinx()
        other.plot(*zip(*held_out, strict=True), marker="o", color="tab:orange", label=f"held-out {metric}")
        if other is not axes:
            other.set_ylabel(metric)
    axes.set(xlabel="optimizer step", ylabel="loss", title=history.job)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    if path is not None:
        figure.savefig(path)
    return figure
