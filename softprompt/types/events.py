"""The numbered events of a tuning job: plain frozen dataclasses. Field names are the protocol's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from softprompt.types.jobs import TuningJob, TuningProgress


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job. Numbers grow by one, from 1."""

    number: int
    time: datetime | None


@dataclass(frozen=True)
class StateChanged(JobEvent):
    job: TuningJob


@dataclass(frozen=True)
class ProgressMade(JobEvent):
    progress: TuningProgress


@dataclass(frozen=True)
class Evaluated(JobEvent):
    """A held-out evaluation after `step` steps."""

    step: int
    metrics: Mapping[str, float]
    is_best: bool


@dataclass(frozen=True)
class CheckpointStored(JobEvent):
    step: int


@dataclass(frozen=True)
class Note(JobEvent):
    """Something a person should know, for example that a worker was lost and the job goes on elsewhere."""

    text: str
