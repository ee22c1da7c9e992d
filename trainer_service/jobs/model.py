"""A tuning job: its spec, its effective settings, its state and progress, its events and its result.

Plain frozen data, written to the job store as JSON. Imports no SQL, Ray, gRPC or torch. `states` has the legal
transitions.
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
    """Numbers from a training run, which may be infinite."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class PublishGate(_Frozen):
    """Conditions that must hold for a finished job to be published. Without any, it is always published."""

    beat_bare_model: bool = False
    """The prompt must beat the bare model with the same template on the same held-out examples."""
    beat_current: bool = False
    """The prompt must beat the version that the alias names now, on the same held-out examples."""
    minimum_metric: float | None = None
    """Lower bound of the metric; for LOSS, the upper bound."""

    @property
    def has_conditions(self) -> bool:
        """Whether any condition is set."""
        return self.beat_bare_model or self.beat_current or self.minimum_metric is not None


class PublishPolicy(_Frozen):
    """What happens with the trained prompt."""

    alias: str = DEFAULT_ALIAS
    """The alias that moves to the new version; empty if none moves."""
    gate: PublishGate | None = None
    wait_until_served_seconds: float | None = Field(default=None, gt=0, le=MAX_WAIT_UNTIL_SERVED_SECONDS)
    """How long after its publication the job waits at most until every live replica serves the version; None: it ends
    when the version is published.
    """


class TuningSpec(_Frozen):
    """A caller's accepted request. Inline examples are replaced by the dataset in which they were stored."""

    prompt: str
    base_model: str = ""
    """Id of a base model of this trainer; empty: its first one."""
    dataset: str
    """`datasets/sha256-<hex>`."""
    validation_dataset: str = ""
    """Separate held-out examples; empty: `validation_fraction` of the training examples is held out."""
    validation_fraction: float | None = Field(default=None, gt=0, lt=1)
    template: Template | None = None
    task: TaskKind | None = None
    labels: tuple[str, ...] = ()
    too_long: TooLong = TooLong.REFUSE
    """How examples that are longer than a sequence are handled."""
    hyperparameters: HyperparameterRequest = HyperparameterRequest()
    publish: PublishPolicy = PublishPolicy()
    priority: int = Field(default=0, ge=MIN_PRIORITY, le=MAX_PRIORITY)
    max_runtime_seconds: float | None = Field(default=None, gt=0)
    """Longest time on workers, over all attempts; None: the service's limit."""
    sampling_defaults: SamplingDefaults = Sampling()
    annotations: Mapping[str, str] = Field(default_factory=dict, max_length=MAX_ANNOTATIONS)
    deadline: datetime | None = None
    """The job fails with DEADLINE_EXCEEDED if it is not trained by then."""

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """The job's datasets without repetitions, sorted."""
        return tuple(sorted({self.dataset, self.validation_dataset} - {""}))


class EffectiveSpec(_Frozen):
    """The spec with all defaults filled in. `Admission.check` makes it when the job is created; it never changes."""

    model_config = ConfigDict(extra="ignore")
    """Stored records of earlier releases may have fields that no longer exist."""

    base_model: BaseModelInfo
    training: TrainingSpec
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training dataset that is held out; 0 if the job has a validation dataset."""
    source_version: str = ""
    """For FROM_PROMPT: the version that training starts from, `prompts/{prompt}/versions/{n}`."""
    source_digest: str = ""
    """For FROM_PROMPT: the digest of that version's blob."""
    source_job: str = ""
    """For FROM_PROMPT: id of the ended job whose best prompt training starts from. A copy is in this job's files."""
    max_runtime_seconds: float = Field(gt=0)
    num_train: int = 0
    num_validation: int = 0
    repetition: Repetition | None = None
    """Repeated examples of the training dataset; None if they were not counted."""
    traceparent: str = ""
    """W3C trace context of the call that created the job, for the spans of its attempts; empty if it had none."""
    alias_revision: int | None = None
    """Revision of the alias's latest move when the job was created; 0 if the alias didn't exist, None if it was not
    recorded or the job moves no alias.
    """


class Job(_Frozen):
    """The current state of one job. `name` is its resource name, `id` the part after the slash."""

    id: str
    spec: TuningSpec
    effective: EffectiveSpec
    state: JobState = JobState.QUEUED
    pausing: bool = False
    """Whether a pause was requested while RUNNING; the job becomes PAUSED after its current step."""
    caller: str = ""
    tenant: str = ""
    """The group of callers whose share of the workers the job uses."""
    request_id: str = ""
    attempt: int = 0
    """Grows by one with every claim, which identifies late events of earlier attempts; 0 if never claimed."""
    failures: int = 0
    """Attempts in a row that were lost to infrastructure since the last checkpoint."""
    runtime_seconds: float = 0.0
    """Time on workers, over all ended attempts."""
    checkpointed: bool = False
    """Whether a checkpoint of the job was stored."""
    queue_position: int = 0
    """Jobs ahead of this one while it is QUEUED, else 0. Computed when the job is read."""
    estimated_start_time: datetime | None = None
    """Estimated time at which a QUEUED job reaches a worker; None if unknown. Computed when the job is read."""
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
        """The resource name."""
        return f"tuningJobs/{self.id}"

    @property
    def keeps_best_prompt(self) -> bool:
        """Whether the job ended without a version, so that its last checkpoint with the best prompt is kept."""
        return self.checkpointed and self.state in UNSUCCESSFUL_STATES


class JobEventKind(StrEnum):
    """Kinds of events, as they are stored."""

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
    """A checkpoint of `step` is stored."""

    step: int


class Note(_Frozen):
    """A message for people."""

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
    """An event of a job. Numbers grow by one within a job, from 1; after the job's end some events are removed."""

    number: int
    time: datetime
    payload: EventPayload

    @property
    def kind(self) -> JobEventKind:
        """The kind of its payload."""
        return _KINDS[type(self.payload)]


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list, and in which order. Empty fields don't restrict."""

    states: frozenset[JobState] = frozenset()
    prompt: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    order: JobOrder = JobOrder.NEWEST_FIRST
    visible_to: tuple[str, ...] = EVERY_PROMPT
    """Patterns of the prompts that the caller may see; jobs of other prompts are not listed."""


@dataclass(frozen=True)
class JobPage:
    """One page of jobs. The next page begins after the job `next_after`, which is empty on the last page."""

    jobs: tuple[Job, ...]
    next_after: str = ""


@dataclass(frozen=True)
class JobCounts:
    """Numbers of jobs and workers."""

    queued: int
    running: int
    """Jobs on a worker or being published, including those being cancelled."""
    num_workers: int


def utc_now() -> datetime:
    """The present time, in UTC."""
    return datetime.now(UTC)


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_job_id() -> str:
    """A new id of 26 characters that sorts by creation time.

    It has the layout of a ULID in lower case: 48 bits of milliseconds, 80 random bits.
    """
    return _job_id(time.time(), secrets.randbits(80))


def first_job_id(created: float) -> str:
    """The smallest id of a job created at this Unix time or later."""
    return _job_id(created, 0)


def _job_id(created: float, random_bits: int) -> str:
    number = int(created * 1000) << 80 | random_bits
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
