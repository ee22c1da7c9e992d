"""What the report of a tuning job shows beside the job itself: curves, held-out answers, confusion matrix and cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from shared.values.base_model import BaseModelInfo
from shared.values.enums import Metric
from shared.values.events import Evaluation
from shared.values.hyperparameters import Init
from shared.values.job import TuningJob

MIN_EXAMPLES = 10
"""With fewer held-out examples, nothing is decided (`trainer_service.training.comparison`)."""
_STORED: dict[str, Any] = {"extra": "forbid", "ser_json_inf_nan": "constants"}


@dataclass(frozen=True)
class TrainingPoint:
    """A point of the training curve. The loss is in nats per target token."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    time: datetime | None = None


@dataclass(frozen=True)
class ModelAnswer:
    """The answer of one model to a held-out input."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    text: str | None = None
    """The chosen label, or the greedily generated text; None: not generated."""
    loss: float = 0.0
    """Nats per target token of the expected answer."""
    correct: bool | None = None
    """Whether the answer equals the expected one; None: not generated."""
    num_targets: int = field(default=0, metadata={"internal": True})
    """Target tokens of the expected answer, to compare models with other tokenizers; 0: unknown, as in the client."""

    def is_comparable(self, metric: Metric) -> bool:
        """Whether this metric of the answer can be compared with that of a model with another tokenizer: of losses, the
        whole answer's; token accuracy never, because it counts the tokenizer's own tokens.
        """
        if metric is Metric.LOSS:
            return math.isfinite(self.loss)
        return metric is not Metric.TOKEN_ACCURACY and self.text is not None


@dataclass(frozen=True)
class HeldOutAnswer:
    """A held-out example with the answers to it. An answer is None if that model was not measured."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    line: int
    """Line of the example in its dataset, from 1."""
    input: str
    reference: str
    """The expected answer."""
    tuned: ModelAnswer | None = None
    current: ModelAnswer | None = None
    """The version that the alias named when the job began."""
    bare: ModelAnswer | None = None
    """The base model with the input alone."""
    instructed: ModelAnswer | None = None
    few_shot: ModelAnswer | None = None


@dataclass(frozen=True)
class ConfusionCell:
    """The number of held-out examples with this expected label for which the prompt chose this label."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    expected: str
    chosen: str
    count: int


@dataclass(frozen=True)
class HeldOutAnswers:
    """The answers to the examples on which a job's metrics were measured, by line."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    answers: tuple[HeldOutAnswer, ...] = ()
    num_left_out: int = 0
    """Examples that are not in `answers`, because their texts are too large together."""
    confusion: tuple[ConfusionCell, ...] = ()
    """The confusion matrix of the tuned prompt (classification), without cells that are 0."""
    other_lines: tuple[int, ...] = ()
    """Lines of the held-out examples that are not in `answers`."""


@dataclass(frozen=True)
class JobCost:
    """What a job has cost so far."""

    worker_time_seconds: float
    """Time on workers over all attempts."""
    num_steps: int
    num_tokens: int | None = None
    """Tokens that the steps computed, virtual ones included; None if unknown."""


@dataclass(frozen=True)
class JobLineage:
    """What a job's prompt was made from."""

    dataset: str
    validation_dataset: str
    """Empty: a part of `dataset` was held out."""
    init: Init | None
    parent_version: str
    """The version that training started from; empty if none."""
    parent_digest: str
    base_model: BaseModelInfo | None
    software_version: str
    """The release that trained the prompt; empty if unknown."""


@dataclass(frozen=True)
class JobReport:
    """Curves, metrics, held-out answers, lineage and cost of one job. docs/quality.md explains the numbers."""

    job: TuningJob
    training: tuple[TrainingPoint, ...]
    evaluations: tuple[Evaluation, ...]
    answers: tuple[HeldOutAnswer, ...]
    num_answers_left_out: int
    """Answers that are missing because the report would be too large."""
    confusion: tuple[ConfusionCell, ...]
    lineage: JobLineage | None
    cost: JobCost | None
    missing: tuple[str, ...]
    """What this report lacks and why."""
    other_held_out_lines: tuple[int, ...] = ()
    """Lines of the held-out examples that are not among `answers`."""
