"""A report as JSON and CSV, and its file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import InvalidInput
from softprompt.output_files import replaced
from softprompt.report.words import ANSWERS
from softprompt.types.plain import as_plain

if TYPE_CHECKING:
    from softprompt.types.report import JobReport

_CORRECT = {True: "yes", False: "no", None: ""}
_FORMULA = frozenset("=+-@\t\r＝＋－＠")
"""First characters by which spreadsheets recognise a formula (OWASP, "CSV Injection")."""


def report_json(report: JobReport) -> str:
    """One object. Numbers that are not finite are null, as in strict JSON."""
    return json.dumps(as_plain(report), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def answers_csv(report: JobReport) -> str:
    """A header, and a row for each held-out example."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    columns = [f"{name}{part}" for name in ANSWERS for part in ("", "_loss", "_correct")]
    writer.writerow(["line", "input", "reference", *columns])
    for answer in report.answers:
        row: list[Any] = [answer.line, guarded(answer.input), guarded(answer.reference)]
        for name in ANSWERS:
            found = getattr(answer, name)
            row += ["", "", ""] if found is None else [guarded(found.text or ""), found.loss, _CORRECT[found.correct]]
        writer.writerow(row)
    return file.getvalue()


def guarded(text: str) -> str:
    """The text, behind an apostrophe if a spreadsheet would take it for a formula."""
    is_formula = text[:1] in _FORMULA or text.lstrip()[:1] in _FORMULA
    return f"'{text}" if text.strip(" ") and is_formula else text


FORMATS: Mapping[str, Callable[[JobReport], str]] = {
    "html": lambda report: report.to_html(),
    "json": report_json,
    "csv": answers_csv,
}


def save_report(report: JobReport, path: Path, format: str = "") -> Path:
    """Write the report in this format, by default that of the file's name."""
    kind = check_target(path, format)
    with replaced(path) as written:
        written.write_text(FORMATS[kind](report), encoding="utf-8", newline="")
    return path


def check_target(path: Path, format: str = "") -> str:
    """The format for this file. Raises InvalidInput for an unknown one, or if there is no such directory."""
    kind = format or path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InvalidInput.of("path", f"{path.name!r} must end with {', '.join('.' + known for known in FORMATS)}")
    if not path.parent.is_dir():
        raise InvalidInput.of("path", f"there is no directory {str(path.parent)!r}")
    return kind
