"""The specification of one tuning job, with all defaults filled in: free of torch, Ray, gRPC and SQL.

A caller leaves hyperparameters out (`shared.values.hyperparameters`); the recipe fills them in. Both are kept with the
job. The pydantic models are what is written to the job store as JSON and shipped to workers.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from shared.values.enums import InitMethod as InitMethod
from shared.values.enums import LearningRateSchedule as LearningRateSchedule
from shared.values.enums import Metric as Metric
from shared.values.enums import PrefixKind as PrefixKind
from shared.values.enums import Reparameterisation as Reparameterisation
from shared.values.enums import TaskKind as TaskKind
from shared.values.enums import TooLong as TooLong
from shared.values.example import Example as Example
from shared.values.hyperparameters import Hyperparameters as Hyperparameters
from shared.values.hyperparameters import Init as Init
from shared.values.template import Template


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FilledHyperparameters(_Frozen):
    """All hyperparameters, with defaults filled in, so `init` has a method. Reported as the job's effective spec."""

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
    kind: PrefixKind = PrefixKind.PROMPT
    """Jobs of earlier releases train soft prompts."""

    @property
    def as_chosen(self) -> Hyperparameters:
        """The same values as a caller's choice."""
        return Hyperparameters(**{name: getattr(self, name) for name in type(self).model_fields})


class FilledDistillation(_Frozen):
    """A distillation with all defaults filled in."""

    num_questions: int
    """Questions of the dataset and of the base model together."""
    max_answer_tokens: int
    num_held_out: int
    """Questions to hold out, if enough different ones are asked."""


class TrainingSpec(_Frozen):
    """The part of a job that decides its gradient: task, template, label set, hyperparameters."""

    task: TaskKind
    template: Template
    labels: tuple[str, ...] = ()
    hyperparameters: FilledHyperparameters
    too_long: TooLong = TooLong.REFUSE
    max_positions: int = 0
    """Longest sequence of virtual tokens, input and target: what replicas take, and the model. 0, of older jobs: the
    model's own.
    """
    distillation: FilledDistillation | None = None
    """Set: the job's examples are a text and questions (`training.distillation`)."""
