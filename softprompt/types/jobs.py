"""A tuning job as the trainer reports it: state, progress, result. Plain frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from shared.errors import PreconditionFailed
from shared.values import job as values
from shared.values.enums import JobOrder as JobOrder
from shared.values.enums import JobState as JobState
from shared.values.results import DatasetStatistics as DatasetStatistics
from shared.values.results import NearestToken as NearestToken
from shared.values.results import SearchCandidate as SearchCandidate
from shared.values.results import TuningError as TuningError
from shared.values.results import TuningProgress as TuningProgress
from shared.values.results import TuningResult as TuningResult

if TYPE_CHECKING:
    from softprompt.types.report import JobReport


@dataclass(frozen=True)
class TuningJob(values.TuningJob):
    """A tuning job with its report."""

    _read_report: ClassVar[Any] = None
    """Set on jobs that `Client` returns."""

    def report(self, *, answers: bool = True) -> JobReport:
        """Curves, metrics, held-out answers, lineage and cost, until now. Only for jobs from `Client`; with
        AsyncClient, call `await client.job_report(job.name)`. Raises PreconditionFailed for other jobs.
        """
        if self._read_report is None:
            raise PreconditionFailed("this job does not come from a Client: use the client's job_report(name)")
        report: JobReport = self._read_report(answers=answers)
        return report

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have the fields alone, without the client."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
