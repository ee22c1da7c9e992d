"""A tuning job: what was asked for, what that means, where it stands, what happened to it, what came out.

Plain frozen data, written to the job store as JSON. Knows no SQL, no Ray, no gRPC and no torch. `states` has the legal
moves.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from shared.caller import EVERY_PROMPT
from shared.model.base_model import BaseModelInfo
from shared.names import DEFAULT_ALIAS
from shared.prompt.manifest import SamplingDefaults
from shared.text.template import Template
from shared.values.enums import JobOrder as JobOrder
from shared.values.results import EncodingStatistics, TuningError, TuningProgress, TuningResult
from shared.values.sampling import Sampling
from trainer_service.jobs.states import UNSUCCESSFUL_STATES, JobState
from trainer_service.training.data.repetition import Repetition
from trainer_service.training.spec import HyperparameterRequest, TaskKind, TooLong, TrainingSpec

MIN_PRIORITY, MAX_PRIORITY = -100, 100
MAX_ANNOTATIONS = 32
MAX_REQUEST_ID_CHARS = 128
MAX_WAIT_UNTIL_SERVED_SECONDS = 3600.0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class _Measured(BaseModel):
    """Numbers from a training run: a loss may be infinite, and says so."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class PublishGate(_Frozen):
    """What must hold for a finished job to be published. Nothing set: always publish."""

    beat_bare_model: bool = False
    """Better than the bare model with the same template on the same held-out examples."""
    beat_current: bool = False
    """Better than the version that the alias names now, on the same held-out examples."""
    minimum_metric: float | None = None
    """At least this metric; at most, for LOSS."""

    @property
    def has_conditions(self) -> bool:
        return self.beat_bare_model or self.beat_current or self.minimum_metric is not None


class PublishPolicy(_Frozen):
    """What happens with the trained prompt."""

    alias: str = DEFAULT_ALIAS
    """Moved to the new version. Empty: none is moved."""
    gate: PublishGate | None = None
    wait_until_served_seconds: float | None = Field(default=None, gt=0, le=MAX_WAIT_UNTIL_SERVED_SECONDS)
    """The job ends when every live replica serves the version, but at most so long after its publication. None: when it
    is published.
    """


class TuningSpec(_Frozen):
    """What a caller asks for, as it was accepted: inline examples are replaced by the dataset that they were stored as."""

    prompt: str
    base_model: str = ""
    """Id of a base model of this trainer; empty: its first."""
    dataset: str
    """`datasets/sha256-<hex>`."""
    validation_dataset: str = ""
    """Held-out examples of their own; empty: `validation_fraction` of the training examples is held out."""
    validation_fraction: float | None = Field(default=None, gt=0, lt=1)
    template: Template | None = None
    task: TaskKind | None = None
    labels: tuple[str, ...] = ()
    too_long: TooLong = TooLong.REFUSE
    """What becomes of examples that are longer than a sequence may be."""
    hyperparameters: HyperparameterRequest = HyperparameterRequest()
    publish: PublishPolicy = PublishPolicy()
    priority: int = Field(default=0, ge=MIN_PRIORITY, le=MAX_PRIORITY)
    max_runtime_seconds: float | None = Field(default=None, gt=0)
    """Longest time on workers, over all attempts. None: the service's limit."""
    sampling_defaults: SamplingDefaults = Sampling()
    annotations: Mapping[str, str] = Field(default_factory=dict, max_length=MAX_ANNOTATIONS)
    deadline: datetime | None = None
    """The job fails with DEADLINE_EXCEEDED if it is not trained by then."""

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """Each dataset once, in order."""
        return tuple(sorted({self.dataset, self.validation_dataset} - {""}))


class EffectiveSpec(_Frozen):
    """The same with nothing left open; made by `Admission.check` when the job is created, never changed after that."""

    base_model: BaseModelInfo
    training: TrainingSpec
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training dataset that is held out; 0 where there is a validation dataset."""
    source_version: str = ""
    """For FROM_PROMPT: `prompts/{prompt}/versions/{n}`."""
    source_digest: str = ""
    source_job: str = ""
    """For FROM_PROMPT: id of the ended job whose best prompt is started from; the prompt itself is among this job's
    files.
    """
    max_runtime_seconds: float = Field(gt=0)
    num_train: int = 0
    num_validation: int = 0
    repetition: Repetition | None = None
    """Of its data set; None: not counted."""
    estimated_seconds: float = 0.0
    """A rough guess at the time on a worker; 0 = none was made."""
    traceparent: str = ""
    """W3C trace context of the call that created the job, for the spans of its attempts; empty: it had none."""
    alias_revision: int | None = None
    """Revision of the alias's latest move when the job was created; 0: there was no such alias. None: not recorded, or
    no alias is asked for.
    """


class Job(_Frozen):
    """One job as it is now. `name` is its resource name; `id` the part after the slash."""

    id: str
    spec: TuningSpec
    effective: EffectiveSpec
    state: JobState = JobState.QUEUED
    pausing: bool = False
    """RUNNING and asked to pause: it becomes PAUSED at its next step."""
    caller: str = ""
    tenant: str = ""
    """The group of callers whose share of the workers it takes."""
    request_id: str = ""
    attempt: int = 0
    """Grows by one with every claim, so that what an earlier attempt still says can be told apart; 0 = never claimed.
    """
    failures: int = 0
    """Attempts lost to infrastructure; bounded."""
    runtime_seconds: float = 0.0
    """Time on workers, over all attempts that ended."""
    checkpointed: bool = False
    """A checkpoint of it was stored."""
    queue_position: int = 0
    """Jobs ahead of it while QUEUED; 0 otherwise. Filled in when read."""
    estimated_start_time: datetime | None = None
    """When it will probably reach a worker, while QUEUED. Filled in when read; None if there is nothing to guess from.
    """
    progress: TuningProgress = TuningProgress()
    dataset_statistics: EncodingStatistics | None = None
    error: TuningError | None = None
    result: TuningResult | None = None
    create_time: datetime
    start_time: datetime | None = None
    end_time: datetime | None = None
    last_event: int = 0
    """Number of its latest event."""

    @property
    def name(self) -> str:
        return f"tuningJobs/{self.id}"

    @property
    def keeps_best_prompt(self) -> bool:
        """Ended without a version, and its last checkpoint, with the best prompt in it, is kept as long as the job is."""
        return self.checkpointed and self.state in UNSUCCESSFUL_STATES


class JobEventKind(StrEnum):
    STATE_CHANGED = "state_changed"
    PROGRESS = "progress"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    NOTE = "note"


class Evaluation(_Measured):
    """Held-out metrics after `step`; 0 = before training."""

    step: int
    metrics: Mapping[str, float]
    is_best: bool


class CheckpointStored(_Frozen):
    step: int


class Note(_Frozen):
    """Something a person should know."""

    text: str


EventPayload = Job | TuningProgress | Evaluation | CheckpointStored | Note

PAYLOADS: Mapping[JobEventKind, type[EventPayload]] = {
    JobEventKind.STATE_CHANGED: Job,
    JobEventKind.PROGRESS: TuningProgress,
    JobEventKind.EVALUATION: Evaluation,
    JobEventKind.CHECKPOINT: CheckpointStored,
    JobEventKind.NOTE: Note,
}
_KINDS = {payload: kind for kind, payload in PAYLOADS.items()}


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job. Numbers grow by one within a job, from 1; once it has ended some are removed."""

    number: int
    time: datetime
    payload: EventPayload

    @property
    def kind(self) -> JobEventKind:
        return _KINDS[type(self.payload)]


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list, and in which order. Empty fields don't restrict."""

    states: frozenset[JobState] = frozenset()
    prompt: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    order: JobOrder = JobOrder.NEWEST_FIRST
    visible_to: tuple[str, ...] = EVERY_PROMPT
    """Patterns of the prompts that the caller may see; other jobs are as if they did not exist."""


@dataclass(frozen=True)
class JobPage:
    """The next page begins after the job `next_after`; empty on the last page."""

    jobs: tuple[Job, ...]
    next_after: str = ""


@dataclass(frozen=True)
class JobCounts:
    queued: int
    running: int
    """On a worker or being published, cancelling ones included."""
    num_workers: int


def utc_now() -> datetime:
    return datetime.now(UTC)


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_job_id() -> str:
    """26 characters that sort by creation: 48 bits of milliseconds, 80 random bits (the layout of a ULID, in lower
    case).
    """
    return _job_id(time.time(), secrets.randbits(80))


def first_job_id(created: float) -> str:
    """Ids of jobs that were created at this Unix time or later sort behind it."""
    return _job_id(created, 0)


def _job_id(created: float, random_bits: int) -> str:
    number = int(created * 1000) << 80 | random_bits
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
