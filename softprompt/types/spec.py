"""What a tuning job should train, as a caller writes it: plain frozen dataclasses without protobuf. Field names are the protocol's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from os import PathLike

from softprompt.data.prepare import PreparedData
from softprompt.types.common import Sampling, Template
from softprompt.types.data import Data, Examples


class TaskKind(StrEnum):
    GENERATION = "GENERATION"
    CHAT = "CHAT"
    CLASSIFICATION = "CLASSIFICATION"


class TooLong(StrEnum):
    """What becomes of examples that are longer than a sequence may be: the job is refused, their inputs are cut, or they are left out."""

    REFUSE = "REFUSE"
    TRUNCATE = "TRUNCATE"
    DROP = "DROP"


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
    too_long: TooLong | None = None
    """None: REFUSE."""
