"""Curves as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from softprompt.report.words import job_metric, number

if TYPE_CHECKING:
    from softprompt.types.report import JobReport

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 720.0, 260.0, 64.0, 28.0, 14.0, 12.0


def held_out_metrics(report: JobReport) -> list[str]:
    """Names of the metrics of the held-out curve; the loss and the job's own metric come first."""
    names = {name for evaluation in report.evaluations for name in evaluation.metrics if not name.endswith("_examples")}
    own = job_metric(report)
    return sorted(names, key=lambda name: (name != "loss", name != own, name))


def training_curve(report: JobReport) -> Points:
    """The training loss by step, without points that are not finite."""
    return _finite((point.step, point.loss) for point in report.training)


def held_out_curve(report: JobReport, metric: str) -> Points:
    """A held-out metric by step."""
    return _finite((item.step, item.metrics[metric]) for item in report.evaluations if metric in item.metrics)


def curves_html(report: JobReport) -> str:
    """The losses, and the job's other held-out metrics, as figures."""
    figures = [
        _figure(name, training_curve(report) if name == "loss" else (), held_out_curve(report, name))
        for name in held_out_metrics(report) or ["loss"]
    ]
    return "".join(figures) or '<p class="soft">There are no points yet.</p>'


def _figure(name: str, training: Points, held_out: Points) -> str:
    points = [*training, *held_out]
    if not points:
        return ""
    last = max(step for step, _ in points) or 1.0
    low, high = min(value for _, value in points), max(value for _, value in points)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5

    def place(step: float, value: float) -> tuple[float, float]:
        across = _LEFT + step / last * (_WIDTH - _LEFT - _RIGHT)
        return across, _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = list[str]()
    for quarter in range(5):
        value = low + (high - low) * quarter / 4
        _, y = place(0, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value, 3)}</text>')
    for quarter in (0, 2, 4):
        x, _ = place(last * quarter / 4, low)
        anchor = ("start", "middle", "end")[quarter // 2]
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{round(last * quarter / 4)}</text>')
    for style, series in (("train", training), ("held", held_out)):
        if series:
            places = [place(*point) for point in series]
            parts.append(f'<path class="{style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
            if len(series) < 40:
                parts += [f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
    legend = ('<span class="k-train">training</span>' if training else "") + '<span class="k-held">held out</span>'
    title = escape(f"{name} by step, from {number(low)} to {number(high)}")
    return (
        f'<figure style="margin:0"><figcaption class="key"><b>{escape(name)}</b> by step &nbsp; {legend}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{title}">{"".join(parts)}</svg></figure>'
    )


def _finite(points: Iterable[tuple[int, float]]) -> Points:
    return [(float(step), value) for step, value in points if math.isfinite(value)]
