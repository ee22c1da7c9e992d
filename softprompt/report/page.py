"""A report as one page. All texts of users are escaped; the page makes no request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from html import escape
from typing import TYPE_CHECKING, Any

from shared.text.counted import counted
from softprompt.report.answers import answers_html, confusion_html
from softprompt.report.curves import curves_html
from softprompt.report.distillation import distillation_facts
from softprompt.report.style import POLICY, SCRIPT, STYLE
from softprompt.report.words import RIVALS, init_text, interval, number, value_text

if TYPE_CHECKING:
    from softprompt.types.report import JobReport


def report_page(report: JobReport) -> str:
    """The whole page, in UTF-8."""
    title = escape(f"{report.job.spec.prompt if report.job.spec else ''} – {report.job.name}")
    sections = [
        _head(report),
        _section("Metrics", _metrics(report)),
        _section("Distillation", _facts(_distilled(report))),
        _section("Curves", curves_html(report)),
        _section("Held-out answers", _answers_note(report) + answers_html(report)),
        confusion_html(report),
        _section("What the prompt reads like", _tokens(report)),
        _section("Data", _facts(_data(report))),
        _section("Recipe", _facts(_recipe(report))),
        _section("Lineage", _facts(_lineage(report))),
        _section("Cost", _facts(_cost(report))),
        _section("What is missing", "".join(f"<p>{escape(text)}</p>" for text in report.missing)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>{''.join(sections)}"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def report_frame(report: JobReport) -> str:
    """The page inside a frame, for notebooks."""
    page = escape(report_page(report))
    return f'<iframe sandbox="allow-scripts" style="width:100%;height:40rem;border:0" srcdoc="{page}"></iframe>'


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _head(report: JobReport) -> str:
    job, result = report.job, report.job.result
    name = escape(job.spec.prompt) if job.spec is not None else ""
    lines = [f'<h1>{name}</h1><p class="soft">{escape(job.name)}, {job.state.value.lower()}{_times(report)}</p>']
    if job.error is not None:
        lines.append(f'<p class="bad">{escape(job.error.code)}: {escape(job.error.message)}</p>')
    if result is not None:
        published = f"published {result.version}" if result.published else "not published"
        verdict = f"<b>{escape(result.verdict)}</b>" if result.verdict else "There is no verdict."
        decision = ": ".join(filter(None, (published, result.gate_decision)))
        lines.append(f'<div class="verdict">{verdict}<p>{escape(decision)}</p></div>')
    return "".join(lines)


def _times(report: JobReport) -> str:
    end = report.job.end_time or report.job.create_time
    return "" if end is None else f", {end:%Y-%m-%d %H:%M UTC}"


def _metrics(report: JobReport) -> str:
    result = report.job.result
    if result is None or not result.metrics:
        return ""
    rows: dict[str, Mapping[str, float]] = {
        "tuned": result.metrics,
        "version before": result.current_metrics,
        "bare model": result.bare_metrics,
        "with template": result.template_metrics,
        "instructed": result.instructed_metrics,
        f"{result.num_shots}-shot": result.few_shot_metrics,
    }
    compared = {RIVALS.get(one.rival, one.rival): one for one in result.comparisons}
    if "few-shot" in compared:
        compared[f"{result.num_shots}-shot"] = compared.pop("few-shot")
    names = list(result.metrics)
    lines = list[str]()
    for title, metrics in rows.items():
        if not metrics:
            continue
        values = "".join(f'<td class="n">{number(metrics.get(name))}</td>' for name in names)
        difference = ""
        if title == "tuned":
            difference = interval(result.metric_low, result.metric_high)
            difference = f"95 % interval {difference}" if difference else "no interval"
        elif (one := compared.get(title)) is not None:
            found = interval(one.low, one.high)
            style = "good" if one.beats else "bad" if one.high is not None and one.high < 0 else "soft"
            beaten = "beaten" if one.beats else "not beaten"
            limits = f" ({found})" if found else ""
            difference = f'<span class="{style}">{beaten}, by {number(one.difference, 3)}{limits}</span>'
        lines.append(f"<tr><th>{escape(title)}</th>{values}<td>{difference}</td></tr>")
    metric = result.comparisons[0].metric if result.comparisons else "metric"
    heads = "".join(f'<th class="n">{escape(name)}</th>' for name in names)
    apart = "none of which chose the checkpoint" if result.judged_apart else "which also chose the checkpoint"
    heads += f"<th>{escape(metric)}: tuned against this</th>"
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="soft">Measured on {counted(result.num_judging, "held-out example")}, {apart}.</p>'
    )


def _distilled(report: JobReport) -> list[tuple[str, str]]:
    result = report.job.result
    return [] if result is None or result.distillation is None else [*distillation_facts(result.distillation).items()]


def _answers_note(report: JobReport) -> str:
    if not report.answers:
        return ""
    text = "Loss: nats per token of the expected answer; lower is better. ✓: the answer equals the expected one."
    return f'<p class="soft">{text}</p>'


def _tokens(report: JobReport) -> str:
    tokens = report.job.result.nearest_tokens if report.job.result is not None else ()
    if not tokens:
        return ""
    shown = "".join(f'<span title="cosine {token.cosine:.3f}">{escape(token.text)}</span>' for token in tokens)
    note = "The vocabulary token nearest to each virtual token, by cosine."
    return f'<p class="soft">{note}</p><p class="tokens">{shown}</p>'


def _data(report: JobReport) -> Iterable[tuple[str, Any]]:
    if (found := report.job.dataset_statistics) is None:
        return ()
    return (
        ("training examples", found.num_train),
        ("held-out examples", found.num_validation),
        ("held-out examples that repeat an input of the training part", found.num_overlapping),
        ("exact duplicates", found.num_duplicates),
        ("near duplicates", found.num_near_duplicates),
        ("contradictions (one input, several labels)", found.num_contradictions),
        ("different inputs", found.num_distinct_inputs),
        ("too long: left out", found.num_dropped),
        ("too long: inputs cut", found.num_truncated),
        ("tokens of an input", f"{found.mean_input_tokens:.1f} on average, {found.max_input_tokens} at most"),
        ("tokens of an answer", f"{found.mean_target_tokens:.1f} on average, {found.max_target_tokens} at most"),
    )


def _recipe(report: JobReport) -> Iterable[tuple[str, Any]]:
    """The effective hyperparameters; those that the caller chose are marked."""
    effective, asked = report.job.effective_spec, report.job.spec
    if effective is None or effective.hyperparameters is None:
        return
    chosen = asked.hyperparameters if asked is not None else None
    for item in fields(effective.hyperparameters):
        value = getattr(effective.hyperparameters, item.name)
        if value in (None, {}) or item.name == "init":
            continue
        mine = chosen is not None and getattr(chosen, item.name) not in (None, {})
        yield item.name.replace("_", " "), f"{value_text(value)}{' (chosen by the caller)' if mine else ''}"
    yield "task", effective.task
    yield "labels", ", ".join(effective.labels)
    yield "template", effective.template.text if effective.template is not None else ""
    if report.job.result is not None:
        yield "best step", report.job.result.best_step
        yield "skipped steps", report.job.result.num_skipped_steps or None


def _lineage(report: JobReport) -> Iterable[tuple[str, Any]]:
    if (found := report.lineage) is None:
        return ()
    init, model, result = found.init, found.base_model, report.job.result
    return (
        ("training data", found.dataset),
        ("held-out data", found.validation_dataset or "a part of the training data"),
        ("initial values", "" if init is None else init_text(init)),
        ("started from", found.parent_version),
        ("digest of that version", found.parent_digest),
        ("compared with", result.current_version if result is not None else ""),
        ("base model", "" if model is None else f"{model.id} ({model.architecture})"),
        ("its fingerprint", "" if model is None else model.fingerprint),
        ("published as", result.version if result is not None else ""),
        ("digest", result.digest if result is not None else ""),
        ("software", found.software_version),
    )


def _cost(report: JobReport) -> Iterable[tuple[str, Any]]:
    if (found := report.cost) is None:
        return ()
    tokens = "unknown" if found.num_tokens is None else f"{found.num_tokens:,}"
    return (
        ("time on workers", f"{found.worker_time_seconds:,.0f} s"),
        ("optimizer steps", f"{found.num_steps:,}"),
        ("tokens computed in training", tokens),
        ("attempts", report.job.attempt),
    )


def _facts(facts: Iterable[tuple[str, Any]]) -> str:
    rows = [(name, value_text(value)) for name, value in facts if value is not None]
    lines = "".join(f'<tr><th>{name}</th><td dir="auto">{escape(text)}</td></tr>' for name, text in rows if text)
    return f'<table class="facts"><tbody>{lines}</tbody></table>' if lines else ""
