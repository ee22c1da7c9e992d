"""A tuning job: its spec, its effective settings, its state and progress, its events and its result.

Plain frozen data, written to the job store as JSON. Imports no SQL, Ray, gRPC or torch. `states` has the legal
transitions.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.caller import EVERY_PROMPT
from shared.names import NO_ALIAS
from shared.prompt.manifest import SamplingDefaults
from shared.security.page_tokens import Json
from shared.text.repetition import Repetition
from shared.values.base_model import BaseModelInfo
from shared.values.enums import JobOrder as JobOrder
from shared.values.events import Checkpoint as Checkpoint
from shared.values.events import Evaluation as Evaluation
from shared.values.events import Note as Note
from shared.values.results import EncodingStatistics, TuningError, TuningProgress, TuningResult
from shared.values.sampling import Sampling
from shared.values.spec import PublishPolicy, TuningSpec
from trainer_service.jobs.states import UNSUCCESSFUL_STATES, JobState
from trainer_service.training.spec import TrainingSpec

JOB_PREFIX = "tuningJobs/"
JOB_NAME = re.compile(rf"{JOB_PREFIX}([0-9a-z]{{1,64}})")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def _without_gap(policy: PublishPolicy) -> PublishPolicy:
    """A stored policy. Earlier releases wrote an empty alias where no alias moves."""
    return replace(policy, alias=policy.alias or NO_ALIAS)


@dataclass(frozen=True)
class StoredSpec(TuningSpec):
    """A caller's accepted spec, as it is stored: its examples are in datasets."""

    dataset: str
    """`datasets/sha256-<hex>`."""
    validation_dataset: str = ""
    """Empty: `validation_fraction` of the training examples is held out."""
    publish: Annotated[PublishPolicy, AfterValidator(_without_gap)] = field(default_factory=PublishPolicy)
    sampling_defaults: SamplingDefaults = field(default_factory=Sampling)

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """The job's datasets without repetitions, sorted."""
        return tuple(sorted({self.dataset, self.validation_dataset} - {""}))


class SampledLengths(_Frozen):
    """Lengths of the examples that were tokenized when a job was created, in tokens without the virtual ones."""

    longest: int
    mean: float
    mean_target: float


class EffectiveSpec(_Frozen):
    """The spec with all defaults filled in. `SpecAdmission.check` makes it at creation; it never changes."""

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
    lengths: SampledLengths | None = None
    """None for a distillation, and for jobs of earlier releases."""
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
    spec: StoredSpec
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
        return f"{JOB_PREFIX}{self.id}"

    @property
    def keeps_best_prompt(self) -> bool:
        """Whether the job ended without a version, so that its last checkpoint with the best prompt is kept.

        A distillation's checkpoints have a prompt only after its self-study.
        """
        has_prompt = self.effective.training.distillation is None or self.progress.step > 0
        return self.checkpointed and has_prompt and self.state in UNSUCCESSFUL_STATES


class JobEventKind(StrEnum):
    """Kinds of events, as they are stored."""

    STATE_CHANGED = "state_changed"
    PROGRESS = "progress"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    NOTE = "note"


EventPayload = Job | TuningProgress | Evaluation | Checkpoint | Note

PAYLOADS: Mapping[JobEventKind, type[EventPayload]] = {
    JobEventKind.STATE_CHANGED: Job,
    JobEventKind.PROGRESS: TuningProgress,
    JobEventKind.EVALUATION: Evaluation,
    JobEventKind.CHECKPOINT: Checkpoint,
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
    order: JobOrder | None = None
    """None: the newest first."""
    visible_to: tuple[str, ...] = EVERY_PROMPT
    """Patterns of the prompts that the caller may see; jobs of other prompts are not listed."""

    @property
    def asked(self) -> dict[str, Json]:
        """The request's own part of the filter, to which a page token is bound."""
        return {
            "states": [*sorted(self.states)],
            "prompt": self.prompt,
            "annotations": dict(self.annotations),
            "order": self.order or JobOrder.NEWEST_FIRST,
        }


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
