"""The numbered events of a tuning job: plain frozen dataclasses. Field names are the protocol's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from shared.values.results import TuningProgress
from softprompt.types.jobs import TuningJob


@dataclass(frozen=True)
class JobEvent:
    """An event of a job. Numbers begin at 1 and grow by one."""

    number: int
    time: datetime | None


@dataclass(frozen=True)
class StateChanged(JobEvent):
    """The job with its new state."""

    job: TuningJob


@dataclass(frozen=True)
class ProgressMade(JobEvent):
    """New progress."""

    progress: TuningProgress


@dataclass(frozen=True)
class Evaluated(JobEvent):
    """A held-out evaluation after `step` steps."""

    step: int
    metrics: Mapping[str, float]
    is_best: bool


@dataclass(frozen=True)
class CheckpointStored(JobEvent):
    """A checkpoint after `step` steps."""

    step: int


@dataclass(frozen=True)
class Note(JobEvent):
    """A sentence for people, for example that a worker was lost and the job continues on another one."""

    text: str
