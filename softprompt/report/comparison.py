"""Several reports beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from shared.values.hyperparameters import Hyperparameters, Init
from softprompt.report.words import init_text, interval, job_metric, number, value_text

if TYPE_CHECKING:
    from softprompt.types.report import JobReport

_OF_TEMPLATE = {"template": "text", "template_format": "format", "template_system": "system"}
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


def cautions(reports: Sequence[JobReport]) -> list[str]:
    """Why the metrics of these jobs can't simply be compared; empty if nothing is known against it."""
    measured = [report for report in reports if report.job.result is not None]
    models = [report.lineage.base_model for report in measured if report.lineage is not None]
    found = list[str]()
    if len({model.tokenizer_digest for model in models if model is not None and model.tokenizer_digest}) > 1:
        found.append("their base models have different tokenizers: loss and token_accuracy can't be compared")
    if len({_held_out(report) for report in measured}) > 1:
        found.append("they were not measured on the same held-out examples: small differences may be chance")
    return found


def _held_out(report: JobReport) -> tuple[object, ...]:
    """What decides which examples a job is measured on, as far as its report says."""
    spec, lineage, found, result = (
        report.job.effective_spec,
        report.lineage,
        report.job.dataset_statistics,
        report.job.result,
    )
    counts = None if found is None else found.num_validation, None if result is None else result.num_judging
    if lineage is not None and lineage.validation_dataset:
        return lineage.validation_dataset, *counts
    split = () if spec is None else (spec.validation_fraction, spec.hyperparameters.seed)
    return "" if lineage is None else lineage.dataset, *split, *counts


def _settings(report: JobReport) -> dict[str, str]:
    spec, lineage = report.job.effective_spec, report.lineage
    chosen = spec.hyperparameters if spec is not None else Hyperparameters()
    found = {item.name: _text(getattr(chosen, item.name)) for item in fields(Hyperparameters)}
    found |= {
        "dataset": "" if lineage is None else lineage.dataset,
        "validation_dataset": "" if lineage is None else lineage.validation_dataset,
        "base_model": "" if lineage is None or lineage.base_model is None else lineage.base_model.id,
        "parent_version": "" if lineage is None else lineage.parent_version,
        "validation_fraction": "" if spec is None else _text(spec.validation_fraction),
        "too_long": "" if spec is None else _text(spec.too_long),
        "labels": "" if spec is None else ", ".join(spec.labels),
        **{
            name: "" if spec is None or spec.template is None else _text(getattr(spec.template, part))
            for name, part in _OF_TEMPLATE.items()
        },
        "software_version": "" if lineage is None else lineage.software_version,
    }
    return found


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return init_text(value, 60) if isinstance(value, Init) else value_text(value)
