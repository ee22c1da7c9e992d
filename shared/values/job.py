"""A tuning job as the trainer reports it: state, progress, result."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from shared.values.enums import JobState
from shared.values.results import DatasetStatistics, TuningError, TuningProgress, TuningResult
from shared.values.spec import TuningSpec


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
