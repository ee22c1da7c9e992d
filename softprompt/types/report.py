"""The report of a tuning job: plain frozen dataclasses. Field names are the protocol's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.values import report as values
from softprompt.types.jobs import TuningJob


@dataclass(frozen=True)
class JobReport(values.JobReport):
    """Curves, metrics, held-out answers, lineage and cost of one job. docs/quality.md explains the numbers."""

    job: TuningJob

    def to_html(self) -> str:
        """One page that needs nothing else: no request, no file."""
        from softprompt.report.page import report_page

        return report_page(self)

    def to_json(self) -> str:
        """Everything, as one JSON object. Numbers that are not finite are null."""
        from softprompt.report.data import report_json

        return report_json(self)

    def to_csv(self) -> str:
        """The answers, a row for each example. Texts that a spreadsheet would compute are quoted with an apostrophe."""
        from softprompt.report.data import answers_csv

        return answers_csv(self)

    def save(self, path: str | Path) -> Path:
        """Write the report; the end of the name (.html, .json, .csv) is the format. Raises InvalidInput for another."""
        from softprompt.report.data import save_report

        return save_report(self, Path(path))

    def _repr_html_(self) -> str:
        from softprompt.report.page import report_frame

        return report_frame(self)
