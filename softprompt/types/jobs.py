"""A tuning job as the trainer reports it: state, progress, result. Plain frozen dataclasses; field names are the
protocol's.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from shared.errors import PreconditionFailed
from shared.values.enums import JobOrder as JobOrder
from shared.values.enums import JobState as JobState
from shared.values.results import DatasetStatistics as DatasetStatistics
from shared.values.results import NearestToken as NearestToken
from shared.values.results import SearchCandidate as SearchCandidate
from shared.values.results import TuningError as TuningError
from shared.values.results import TuningProgress as TuningProgress
from shared.values.results import TuningResult as TuningResult
from softprompt.types.spec import TuningSpec

if TYPE_CHECKING:
    from softprompt.types.history import JobHistory


@dataclass(frozen=True)
class TuningJob:
    """A tuning job. `spec` is the caller's; `effective_spec` has the service's choices."""

    name: str
    """ "tuningJobs/<id>"."""
    spec: TuningSpec | None
    effective_spec: TuningSpec | None
    state: JobState
    queue_position: int
    attempt: int
    progress: TuningProgress | None
    dataset_statistics: DatasetStatistics | None
    error: TuningError | None
    result: TuningResult | None
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    last_event: int
    estimated_start_time: datetime | None
    """An estimate while the job is queued."""
    best_prompt_kept: bool
    """The job ended without a version and its best prompt is kept; `continue_job` starts from it."""

    _read_history: ClassVar[Any] = None
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
