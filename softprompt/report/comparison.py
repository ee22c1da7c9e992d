"""Several reports beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from shared.values.hyperparameters import Hyperparameters, Init
from softprompt.report.words import init_text, interval, job_metric, number, value_text

if TYPE_CHECKING:
    from softprompt.types.report import JobReport

Rows = Mapping[str, Sequence[str]]
"""A text for each report, by the row's name."""


def differing_settings(reports: Sequence[JobReport]) -> Rows:
    """The effective hyperparameters, data, model and template in which the jobs differ."""
    found = [_settings(report) for report in reports]
    rows = {name: [settings[name] for settings in found] for name in found[0]}
    return {name: texts for name, texts in rows.items() if len(set(texts)) > 1}


def final_metrics(reports: Sequence[JobReport]) -> Rows:
    """The held-out metrics of the results, that of the job with its 95 % interval, and what they were measured on."""
    results = [report.job.result for report in reports]
    names = sorted({name for result in results if result is not None for name in result.metrics})
    rows: dict[str, list[str]] = {}
    for name in names:
        rows[name] = []
        for report, result in zip(reports, results, strict=True):
            text = number(None if result is None else result.metrics.get(name))
            if result is not None and name == job_metric(report):
                found = interval(result.metric_low, result.metric_high)
                text += f" ({found})" if found else " (no interval)"
            rows[name].append(text)
    if rows:
        rows["held-out examples"] = [str(result.num_judging) if result is not None else "–" for result in results]
        rows["beats"] = [
            "–" if result is None else ", ".join(one.rival for one in result.comparisons if one.beats) or "none"
            for result in results
        ]
    return rows


def _settings(report: JobReport) -> dict[str, str]:
    spec, lineage = report.job.effective_spec, report.lineage
    chosen = spec.hyperparameters if spec is not None else Hyperparameters()
    found = {item.name: _text(getattr(chosen, item.name)) for item in fields(Hyperparameters)}
    found |= {
        "dataset": "" if lineage is None else lineage.dataset,
        "validation_dataset": "" if lineage is None else lineage.validation_dataset,
        "base_model": "" if lineage is None or lineage.base_model is None else lineage.base_model.id,
        "parent_version": "" if lineage is None else lineage.parent_version,
        "template": "" if spec is None or spec.template is None else spec.template.text,
        "software_version": "" if lineage is None else lineage.software_version,
    }
    return found


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return init_text(value, 60) if isinstance(value, Init) else value_text(value)
