"""The held-out answers as a table that can be sorted."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from softprompt.report.words import ANSWERS, number

if TYPE_CHECKING:
    from shared.values.report import HeldOutAnswer, ModelAnswer
    from softprompt.types.report import JobReport

_BEST, _WORST = ("best first", "loss", "up"), ("worst first", "loss", "down")


def answers_html(report: JobReport) -> str:
    """The answers, those that became worse first."""
    if not report.answers:
        return '<p class="soft">There are no answers.</p>'
    shown = [name for name in ANSWERS if any(getattr(answer, name) is not None for answer in report.answers)]
    orders = [
        (f"worse than {title}", f"{name}Change", "down")
        for name, title in (("current", "before"), ("bare", "the bare model"), ("few_shot", "few-shot"))
        if name in shown
    ]
    buttons = "".join(
        f'<button type="button" data-key="{_camel(key)}" data-order="{order}" aria-pressed="false">{title}</button>'
        for title, key, order in (*orders, _WORST, _BEST, ("by line", "line", "up"))
    )
    heads = "".join(f"<th>{ANSWERS[name]}</th>" for name in shown)
    rows = "".join(_row(answer, shown) for answer in report.answers)
    return (
        f'<div class="sort" role="group" aria-label="order">{buttons}</div><div class="scroll"><table class="answers">'
        f'<thead><tr><th class="n">line</th><th>input</th><th>expected</th>{heads}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )


def confusion_html(report: JobReport) -> str:
    """The confusion matrix; empty without labels."""
    counts = {(cell.expected, cell.chosen): cell.count for cell in report.confusion}
    expected = list(dict.fromkeys(label for label, _ in counts))
    chosen = list(dict.fromkeys([*expected, *(label for _, label in counts)]))
    if not counts:
        return ""
    heads = "".join(f'<th class="n" dir="auto">{escape(label)}</th>' for label in chosen)
    rows = "".join(
        f'<tr><th dir="auto">{escape(label)}</th>' + "".join(_cell(counts, label, other) for other in chosen) + "</tr>"
        for label in expected
    )
    return (
        "<h2>Confusion matrix</h2><p class=soft>Rows: expected label. Columns: label that the tuned prompt chose.</p>"
        f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cell(counts: dict[tuple[str, str], int], expected: str, chosen: str) -> str:
    count = counts.get((expected, chosen), 0)
    style = "" if not count else " good" if expected == chosen else " bad"
    return f'<td class="n{style}">{count or ""}</td>'


def _row(answer: HeldOutAnswer, shown: list[str]) -> str:
    data = {"line": float(answer.line)}
    if answer.tuned is not None:
        data["loss"] = answer.tuned.loss
        for name in ("current", "bare", "few_shot"):
            if (rival := getattr(answer, name)) is not None:
                data[f"{name}Change"] = _change(answer.tuned, rival)
    finite = {_dashed(_camel(key)): value for key, value in data.items() if math.isfinite(value)}
    values = "".join(f' data-{key}="{value:.6g}"' for key, value in finite.items())
    cells = "".join(_answer(getattr(answer, name), ANSWERS[name]) for name in shown)
    return (
        f'<tr{values}><td class="n" data-title="line">{answer.line}</td>'
        f'<td data-title="input" dir="auto">{escape(answer.input)}</td>'
        f'<td data-title="expected" dir="auto">{escape(answer.reference)}</td>{cells}</tr>'
    )


def _change(tuned: ModelAnswer, rival: ModelAnswer) -> float:
    """How much worse the tuned prompt is: by the loss, and first of all if only the rival's answer is right."""
    only_rival = int(rival.correct is True and tuned.correct is False)
    only_tuned = int(tuned.correct is True and rival.correct is False)
    return tuned.loss - rival.loss + 1000 * (only_rival - only_tuned)


def _answer(answer: ModelAnswer | None, title: str) -> str:
    if answer is None:
        return f'<td data-title="{title}" class="soft">–</td>'
    mark = {True: '<span class="good">✓</span> ', False: '<span class="bad">✗</span> ', None: ""}[answer.correct]
    text = '<span class="soft">not generated</span>' if answer.text is None else escape(answer.text)
    return f'<td data-title="{title}" dir="auto">{mark}{text}<small>loss {number(answer.loss, 3)}</small></td>'


def _camel(key: str) -> str:
    """`few_shotChange` -> `fewShotChange`, the name in the script."""
    head, *rest = key.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


def _dashed(key: str) -> str:
    """`fewShotChange` -> `few-shot-change`, the name in the page."""
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in key)
