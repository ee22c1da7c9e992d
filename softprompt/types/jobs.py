"""A tuning job as the trainer reports it: state, progress, result. Plain frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from shared.errors import PreconditionFailed
from shared.values import job as values

if TYPE_CHECKING:
    from softprompt.types.history import JobHistory
    from softprompt.types.report import JobReport


@dataclass(frozen=True)
class TuningJob(values.TuningJob):
    """A tuning job with its history and report and, in notebooks, as a table."""

    _read_history: ClassVar[Any] = None
    """Set on jobs that `Client` returns."""

    _read_report: ClassVar[Any] = None
    """Set on jobs that `Client` returns."""

    def history(self) -> JobHistory:
        """Losses, held-out metrics and notes until now. Only for jobs from `Client`; with AsyncClient, call
        `await client.job_history(job.name)`. Raises PreconditionFailed for other jobs.
        """
        if self._read_history is None:
            raise PreconditionFailed("this job does not come from a Client: use the client's job_history(name)")
        history: JobHistory = self._read_history()
        return history

    def plot(self, metric: str = "loss", path: str | Path | None = None) -> Any:
        """The history's plot. See `JobHistory.plot`."""
        return self.history().plot(metric, path)

    def report(self, *, answers: bool = True) -> JobReport:
        """Curves, metrics, held-out answers, lineage and cost, until now. Only for jobs from `Client`; with
        AsyncClient, call `await client.job_report(job.name)`. Raises PreconditionFailed for other jobs.
        """
        if self._read_report is None:
            raise PreconditionFailed("this job does not come from a Client: use the client's job_report(name)")
        report: JobReport = self._read_report(answers=answers)
        return report

    def _repr_html_(self) -> str:
        from softprompt.display.html import job_html

        return job_html(self)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have the fields alone, without the client."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True)
class JobCheck:
    """What a job would be. `job` has no name, because it was not created; its effective spec has the recipe's choices,
    its statistics what was counted in the data.
    """

    job: TuningJob
    estimated_seconds: float | None
    """Time on a worker, by the speed of earlier jobs of the base model; None without such jobs."""
    estimated_memory_bytes: int | None = None
    """Memory of a worker that trains only this job, the base model included: of its GPUs together, or else of its
    process. None for a distillation before the trainer's first job of the base model.
    """
