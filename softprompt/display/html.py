"""Jobs, versions and histories as HTML for notebooks. All texts are escaped: names, labels and notes are a caller's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING

from softprompt.report.words import number

if TYPE_CHECKING:
    from softprompt.types.history import JobHistory
    from softprompt.types.jobs import TuningJob
    from softprompt.types.prompts import PromptVersion

_WIDTH, _HEIGHT, _MARGIN = 480, 160, 8


def job_html(job: TuningJob) -> str:
    """State, progress and result of a job."""
    progress, result = job.progress, job.result
    rows = {
        "prompt": job.spec.prompt if job.spec else "",
        "state": f"{job.state}" + (f", {job.queue_position} ahead" if job.queue_position else ""),
        "step": f"{progress.step} of {progress.num_steps}" if progress and progress.num_steps else "",
        "training loss": number(progress.train_loss) if progress and progress.step else "",
        "error": f"{job.error.code}: {job.error.message}" if job.error else "",
    }
    if result is not None:
        rows["version"] = result.version or f"not published: {result.gate_decision}"
        rows["held out"] = _numbers(result.metrics)
        rows["bare model"] = _numbers(result.bare_metrics)
        rows["verdict"] = result.verdict
    return _table(job.name, rows)


def version_html(version: PromptVersion) -> str:
    """A version with its metrics and template."""
    rows = {
        "aliases": ", ".join(version.aliases),
        "base model": version.base_model.id if version.base_model else "",
        "kind": version.kind.lower(),
        "virtual tokens": str(version.num_virtual_tokens),
        "template": version.template.text if version.template else "",
        "labels": ", ".join(version.labels),
        "held out": _numbers(version.metrics),
        "verdict": version.verdict,
        "digest": version.digest,
    }
    return _table(version.name, rows)


def history_html(history: JobHistory) -> str:
    """The loss curves as SVG, and the notes."""
    training = [(point.step, point.loss) for point in history.points]
    held_out = [(item.step, item.metrics["loss"]) for item in history.evaluations if "loss" in item.metrics]
    notes = "".join(f"<li>{escape(note.text)}</li>" for note in history.notes)
    curves = {"training loss": training, "held-out loss": held_out}
    last = {title: number(points[-1][1]) for title, points in curves.items() if points}
    return _curves(training, held_out) + _table(history.job, last) + (f"<ul>{notes}</ul>" if notes else "")


def _curves(training: list[tuple[int, float]], held_out: list[tuple[int, float]]) -> str:
    points = [point for point in (*training, *held_out) if abs(point[1]) < float("inf")]
    if len(points) < 2:
        return ""
    steps, losses = max(step for step, _ in points) or 1, max(loss for _, loss in points) or 1.0

    def line(series: Iterable[tuple[int, float]], colour: str, name: str) -> str:
        places = " ".join(
            f"{_MARGIN + step / steps * (_WIDTH - 2 * _MARGIN):.1f},"
            f"{_HEIGHT - _MARGIN - max(0.0, loss) / losses * (_HEIGHT - 2 * _MARGIN):.1f}"
            for step, loss in series
            if abs(loss) < float("inf")
        )
        return f'<polyline points="{places}" fill="none" stroke="{colour}"><title>{name}</title></polyline>'

    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="loss by step, 0 to {losses:.4g}">'
        f"{line(training, '#2a78b8', 'training loss')}{line(held_out, '#d2691e', 'held-out loss')}</svg>"
    )


def _table(title: str, rows: Mapping[str, str]) -> str:
    lines = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in rows.items()
        if text
    )
    return f"<table><caption>{escape(title)}</caption>{lines}</table>"


def _numbers(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in sorted(metrics.items()))
