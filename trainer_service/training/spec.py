"""What one tuning job is to train: the domain's own types, free of torch, Ray, gRPC and SQL.

A user's request leaves fields out (`HyperparameterRequest`); the recipe fills them in (`Hyperparameters`). Both are
kept with the job. The pydantic models are what is written to the job store as JSON and shipped to workers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from shared.prompt.soft_prompt import MAX_VIRTUAL_TOKENS
from shared.text.template import Message, Template
from shared.values.enums import InitMethod as InitMethod
from shared.values.enums import LearningRateSchedule as LearningRateSchedule
from shared.values.enums import Metric as Metric
from shared.values.enums import Reparameterisation as Reparameterisation
from shared.values.enums import TaskKind as TaskKind
from shared.values.enums import TooLong as TooLong


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Init(_Frozen):
    """How the soft prompt starts."""

    method: InitMethod = InitMethod.TEXT
    text: str = ""
    """For TEXT. Empty: the recipe writes one from the template and the task."""
    source_version: str = ""
    """For FROM_PROMPT: `prompts/{prompt}/versions/{n}`, resolved before the job starts."""


class HyperparameterRequest(_Frozen):
    """Every field may be left out (None); ranges are checked when the job is created, naming the field."""

    num_virtual_tokens: int | None = Field(default=None, ge=1, le=MAX_VIRTUAL_TOKENS)
    init: Init | None = None
    reparameterisation: Reparameterisation | None = None
    learning_rate: float | None = Field(default=None, gt=0, le=10)
    schedule: LearningRateSchedule | None = None
    warmup_steps: int | None = Field(default=None, ge=0, le=1_000_000)
    weight_decay: float | None = Field(default=None, ge=0, le=1)
    max_grad_norm: float | None = Field(default=None, ge=0, le=1e6)
    """0 = no clipping."""
    batch_size: int | None = Field(default=None, ge=1, le=4096)
    num_epochs: float | None = Field(default=None, gt=0, le=10_000)
    """Exclusive with num_steps."""
    num_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    evaluation_interval_steps: int | None = Field(default=None, ge=1, le=1_000_000)
    early_stop_patience: int | None = Field(default=None, ge=0, le=10_000)
    """Evaluations without improvement before stopping; 0 = never stop early."""
    label_smoothing: float | None = Field(default=None, ge=0, lt=1)
    balance_classes: bool | None = None
    """Weigh each class by its inverse frequency (classification only)."""
    class_weights: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(default_factory=dict)
    """By label; 1 for those left out (classification only). Exclusive with balance_classes."""
    metric: Metric | None = None
    seed: int | None = Field(default=None, ge=0, le=2**63 - 1)
    search: bool | None = None
    """Train a small cohort of learning rates and inits first and keep the best (successive halving)."""


class Hyperparameters(_Frozen):
    """What is really trained: nothing left open. Reported as the job's effective spec."""

    num_virtual_tokens: int
    init: Init
    reparameterisation: Reparameterisation
    learning_rate: float
    schedule: LearningRateSchedule
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    batch_size: int
    num_steps: int
    evaluation_interval_steps: int
    early_stop_patience: int
    label_smoothing: float
    balance_classes: bool
    metric: Metric
    seed: int
    search: bool
    class_weights: dict[str, float] = Field(default_factory=dict)
    """By label; what is left out weighs 1."""


class Example(_Frozen):
    """One line of a dataset. `line` is its 1-based number there; it is what error messages name."""

    line: int
    input: str = ""
    output: str | None = None
    label: str | None = None
    messages: tuple[Message, ...] = ()


class TrainingSpec(_Frozen):
    """The part of a job that decides its gradient: task, template, label set, hyperparameters."""

    task: TaskKind
    template: Template
    labels: tuple[str, ...] = ()
    hyperparameters: Hyperparameters
    too_long: TooLong = TooLong.REFUSE
    max_positions: int = 0
    """Longest sequence of virtual tokens, input and target: what replicas take, and the model. 0, of older jobs: the
    model's own.
    """
