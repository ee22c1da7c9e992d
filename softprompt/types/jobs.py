"""A tuning job as the trainer reports it: state, progress, result. Plain frozen dataclasses."""

from __future__ import annotations

from shared.values.enums import JobOrder as JobOrder
from shared.values.enums import JobState as JobState
from shared.values.job import TuningJob as TuningJob
from shared.values.results import DatasetStatistics as DatasetStatistics
from shared.values.results import NearestToken as NearestToken
from shared.values.results import SearchCandidate as SearchCandidate
from shared.values.results import TuningError as TuningError
from shared.values.results import TuningProgress as TuningProgress
from shared.values.results import TuningResult as TuningResult
