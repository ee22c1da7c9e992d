"""The report of a tuning job: plain frozen dataclasses. Field names are the protocol's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.values.report import ConfusionCell as ConfusionCell
from shared.values.report import HeldOutAnswer as HeldOutAnswer
from shared.values.report import JobCost as JobCost
from shared.values.report import ModelAnswer as ModelAnswer
from shared.values.report import TrainingPoint as TrainingPoint
from softprompt.types.common import BaseModelInfo
from softprompt.types.jobs import TuningJob
from softprompt.types.spec import Init


@dataclass(frozen=True)
class Evaluation:
    """Held-out metrics after `step` steps; 0: before training."""

    step: int
    metrics: Mapping[str, float]
    is_best: bool


@dataclass(frozen=True)
class JobLineage:
    """What a job's prompt was made from."""

    dataset: str
    validation_dataset: str
    """Empty: a part of `dataset` was held out."""
    init: Init | None
    parent_version: str
    """The version that training started from; empty if none."""
    parent_digest: str
    base_model: BaseModelInfo | None
    software_version: str
    """The release that trained the prompt; empty if unknown."""


@dataclass(frozen=True)
class JobReport:
    """Curves, metrics, held-out answers, lineage and cost of one job. docs/quality.md explains the numbers."""

    job: TuningJob
    training: tuple[TrainingPoint, ...]
    evaluations: tuple[Evaluation, ...]
    answers: tuple[HeldOutAnswer, ...]
    num_answers_left_out: int
    """Answers that are missing because the report would be too large."""
    confusion: tuple[ConfusionCell, ...]
    lineage: JobLineage | None
    cost: JobCost | None
    missing: tuple[str, ...]
    """What this report lacks and why."""

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
