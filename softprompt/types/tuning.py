"""Tuning jobs as a caller sees them, as plain frozen dataclasses. Knows no protobuf; field names are those of the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from os import PathLike

from softprompt.data.prepare import PreparedData
from softprompt.types.common import BaseModelInfo, Comparison, Sampling, Template
from softprompt.types.data import Data, Examples


class TaskKind(StrEnum):
    GENERATION = "GENERATION"
    CHAT = "CHAT"
    CLASSIFICATION = "CLASSIFICATION"


class InitMethod(StrEnum):
    TEXT = "TEXT"
    LABELS = "LABELS"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"
    FROM_PROMPT = "FROM_PROMPT"


class Reparameterisation(StrEnum):
    NONE = "NONE"
    RESIDUAL = "RESIDUAL"


class LearningRateSchedule(StrEnum):
    COSINE = "COSINE"
    LINEAR = "LINEAR"
    CONSTANT = "CONSTANT"


class Metric(StrEnum):
    """Loss is better when lower, all others when higher."""

    LOSS = "LOSS"
    TOKEN_ACCURACY = "TOKEN_ACCURACY"
    ACCURACY = "ACCURACY"
    MACRO_F1 = "MACRO_F1"
    CHRF = "CHRF"
    BLEU = "BLEU"
    EXACT_MATCH = "EXACT_MATCH"


class JobOrder(StrEnum):
    NEWEST_FIRST = "NEWEST_FIRST"
    OLDEST_FIRST = "OLDEST_FIRST"


class JobState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


Dataset = str | PathLike[str] | Examples | Data | PreparedData
"""A file or other data as `Data` takes them, a dataset name ("datasets/sha256-..."), or a URI that the trainer can read ("file:///...")."""


@dataclass(frozen=True)
class Init:
    """Where the soft prompt starts. `text` is for TEXT; `source`, a prompt reference or a job that keeps its prompt, for FROM_PROMPT."""

    method: InitMethod | None = None
    text: str = ""
    source: str = ""


@dataclass(frozen=True)
class Hyperparameters:
    """What is None is chosen by the recipe and reported in the job's effective spec."""

    num_virtual_tokens: int | None = None
    init: Init | None = None
    reparameterisation: Reparameterisation | None = None
    learning_rate: float | None = None
    schedule: LearningRateSchedule | None = None
    warmup_steps: int | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    batch_size: int | None = None
    num_epochs: float | None = None
    num_steps: int | None = None
    evaluation_interval_steps: int | None = None
    early_stop_patience: int | None = None
    label_smoothing: float | None = None
    balance_classes: bool | None = None
    class_weights: Mapping[str, float] = field(default_factory=dict)
    metric: Metric | None = None
    seed: int | None = None
    search: bool | None = None


@dataclass(frozen=True)
class PublishGate:
    """What must hold for the alias to be moved to the new version."""

    beat_bare_model: bool = False
    beat_current: bool = False
    minimum_metric: float | None = None


@dataclass(frozen=True)
class PublishPolicy:
    """`alias` empty: "default"; "-": none is moved."""

    alias: str = ""
    gate: PublishGate | None = None
    wait_until_served_seconds: float | None = None
    """The job ends when every live replica serves the version, or one refuses it, but at most so long after its publication."""


@dataclass(frozen=True)
class TuningSpec:
    """What to train. Only `prompt` and `dataset` are needed; what is left out is chosen by the service and reported."""

    prompt: str
    dataset: Dataset
    base_model: str = ""
    validation_dataset: Dataset | None = None
    validation_fraction: float | None = None
    template: Template | None = None
    task: TaskKind | None = None
    labels: tuple[str, ...] = ()
    hyperparameters: Hyperparameters | None = None
    publish: PublishPolicy | None = None
    priority: int = 0
    max_runtime_seconds: float | None = None
    sampling_defaults: Sampling | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    deadline: datetime | None = None
    """Fails with DEADLINE_EXCEEDED if it is not trained by then. With a time zone."""


@dataclass(frozen=True)
class UploadedDataset:
    """`dataset` is its name, "datasets/sha256-<hex>": the same bytes always get the same one."""

    dataset: str
    num_examples: int
    task: TaskKind | None
    labels: tuple[str, ...]


@dataclass(frozen=True)
class StoredDataset:
    """A dataset of the caller's tenant; `num_jobs` counts the tenant's jobs that name it, ended ones as long as they are kept."""

    name: str
    size_bytes: int
    num_examples: int
    """0 if the service has still to count them, after an upgrade."""
    task: TaskKind | None
    num_labels: int
    create_time: datetime | None
    last_use_time: datetime | None
    """When it was last stored, or named by a new job."""
    num_jobs: int


@dataclass(frozen=True)
class TuningProgress:
    step: int
    num_steps: int
    train_loss: float
    grad_norm: float
    learning_rate: float
    metrics: Mapping[str, float]
    """Held-out metrics of the last evaluation."""
    best_step: int
    examples_per_second: float
    estimated_end_time: datetime | None
    num_skipped_steps: int = 0
    """Left out because their loss or gradient was not finite."""


@dataclass(frozen=True)
class DatasetStatistics:
    num_train: int
    num_validation: int
    num_dropped: int
    num_overlapping: int
    mean_input_tokens: float
    max_input_tokens: int
    mean_target_tokens: float
    max_target_tokens: int
    num_distinct_inputs: int = 0
    num_duplicates: int = 0
    """Examples that repeat an earlier one exactly."""
    num_near_duplicates: int = 0
    """Examples whose input is nearly that of an earlier one."""
    num_contradictions: int = 0
    """Examples whose input also has another label."""


@dataclass(frozen=True)
class TuningError:
    """`code` is a stable word; `field`, if set, names what would mend it."""

    code: str
    message: str
    field: str


@dataclass(frozen=True)
class NearestToken:
    text: str
    cosine: float


@dataclass(frozen=True)
class SearchCandidate:
    """What a search tried. `end`: why it left early, "worse" or "not finite"; empty if it was trained to the end."""

    learning_rate: float
    init_method: InitMethod | None
    num_steps: int
    metrics: Mapping[str, float]
    chosen: bool
    end: str


@dataclass(frozen=True)
class TuningResult:
    published: bool
    version: str
    digest: str
    alias_moved: bool
    gate_decision: str
    metrics: Mapping[str, float]
    bare_metrics: Mapping[str, float]
    template_metrics: Mapping[str, float]
    current_metrics: Mapping[str, float]
    nearest_tokens: tuple[NearestToken, ...]
    score_stability: float
    best_step: int
    current_version: str
    """What the alias named when the prompts were compared: the version that `current_metrics` are of."""
    served_by_all: bool | None
    """None unless the job was to wait for it."""
    serving: str
    """How many live replicas served the version when the job ended, and which refused it and why."""
    instructed_metrics: Mapping[str, float] = field(default_factory=dict)
    few_shot_metrics: Mapping[str, float] = field(default_factory=dict)
    num_shots: int = 0
    """Training examples in each few-shot input."""
    comparisons: tuple[Comparison, ...] = ()
    verdict: str = ""
    """Which other ways to use the base model the prompt beats, and which it doesn't."""
    metric_low: float | None = None
    metric_high: float | None = None
    """Ends of the 95 % interval of the job's metric; None: too few held-out examples for one."""
    num_judging: int = 0
    """Held-out examples that all metrics here are of."""
    judged_apart: bool = False
    """Whether none of them judged a checkpoint that it had helped to choose."""
    candidates: tuple[SearchCandidate, ...] = ()
    """What a search tried."""
    num_skipped_steps: int = 0


@dataclass(frozen=True)
class TuningJob:
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
    """A guess, while it waits."""
    best_prompt_kept: bool
    """Ended without a version; `continue_job` goes on from its best prompt so far."""


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


@dataclass(frozen=True)
class TuningLimits:
    max_virtual_tokens: int
    max_examples: int
    max_dataset_bytes: int
    max_line_bytes: int
    max_queued_jobs: int
    max_runtime_seconds: float | None


@dataclass(frozen=True)
class UnavailableBaseModel:
    """A base model that is configured and can't be used now."""

    id: str
    reason: str


@dataclass(frozen=True)
class ServiceInfo:
    """What a trainer can train, its limits, its defaults, and how busy it is."""

    software_version: str
    base_models: tuple[BaseModelInfo, ...]
    limits: TuningLimits | None
    default_hyperparameters: Hyperparameters | None
    queued_jobs: int
    running_jobs: int
    num_workers: int
    unavailable_base_models: tuple[UnavailableBaseModel, ...] = ()
    """Configured, but their files are missing or broken now."""
