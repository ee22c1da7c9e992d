"""What a tuning job should train, as a caller writes it: plain frozen dataclasses without protobuf. Field names are the
protocol's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from os import PathLike

from shared.values.enums import InitMethod as InitMethod
from shared.values.enums import LearningRateSchedule as LearningRateSchedule
from shared.values.enums import Metric as Metric
from shared.values.enums import Reparameterisation as Reparameterisation
from shared.values.enums import TaskKind as TaskKind
from shared.values.enums import TooLong as TooLong
from softprompt.data.prepare import PreparedData
from softprompt.types.common import Sampling, Template
from softprompt.types.data import Data, Examples

Dataset = str | PathLike[str] | Examples | Data | PreparedData
"""Data as `Data.source` accepts it, a dataset name ("datasets/sha256-..."), or a URI that the trainer reads
("file:///...").
"""


@dataclass(frozen=True)
class Init:
    """Initialisation of the soft prompt. `text` is for TEXT; `source` is for FROM_PROMPT: a version or a job with a
    kept prompt.
    """

    method: InitMethod | None = None
    text: str = ""
    source: str = ""


@dataclass(frozen=True)
class Hyperparameters:
    """The service chooses what is None and reports it in the job's effective spec."""

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
    """Conditions of a publication. `minimum_metric` is compared with the value itself, `beat_...` with the interval of
    the difference.
    """

    beat_bare_model: bool = False
    beat_current: bool = False
    minimum_metric: float | None = None


@dataclass(frozen=True)
class PublishPolicy:
    """What to do with the trained prompt. `alias` empty: move "default"; "-": move none."""

    alias: str = ""
    gate: PublishGate | None = None
    wait_until_served_seconds: float | None = None
    """Keep the job running until every live replica serves the version or one refuses it, at most this long."""


@dataclass(frozen=True)
class TuningSpec:
    """What to train. Only `prompt` and `dataset` are required; the service chooses and reports the rest."""

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
    """The job fails with DEADLINE_EXCEEDED if it has not ended by then. Needs a time zone."""
    too_long: TooLong | None = None
    """None: REFUSE."""
