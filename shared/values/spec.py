"""What a tuning job should train, as a caller asks for it and as the trainer keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from shared.caller import MAX_PRIORITY
from shared.names import DEFAULT_ALIAS, NO_ALIAS, check_alias, check_name
from shared.values.bounds import bounded, check_bounds
from shared.values.enums import TaskKind, TooLong
from shared.values.hyperparameters import Hyperparameters
from shared.values.sampling import Sampling
from shared.values.template import Template
from shared.violations import Violations

MAX_ANNOTATIONS, MAX_ANNOTATION_KEY_CHARS, MAX_ANNOTATION_VALUE_CHARS = 32, 64, 512
MAX_WAIT_UNTIL_SERVED_SECONDS = 3600
DOCUMENT, QUESTION = "document", "question"
"""Outputs of the examples of a distillation: they say what each input is."""
DEFAULT_QUESTIONS, DEFAULT_ANSWER_TOKENS, MAX_STUDY_TOKENS = 256, 128, 65_536
MIN_QUESTIONS, MAX_QUESTIONS, MAX_ANSWER_TOKENS = 4, 4096, 1024
_STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True)
class PublishGate:
    """Conditions of a publication. Without any, a finished job is always published."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    beat_bare_model: bool = False
    """The prompt must beat the bare model with the same template on the same held-out examples."""
    beat_current: bool = False
    """The prompt must beat the version that the alias names now, on the same held-out examples."""
    minimum_metric: float | None = None
    """Lower bound of the metric; for LOSS, the upper bound. Compared with the value itself, not with its interval."""

    @property
    def has_conditions(self) -> bool:
        """Whether any condition is set."""
        return self.beat_bare_model or self.beat_current or self.minimum_metric is not None


@dataclass(frozen=True)
class PublishPolicy:
    """What happens with the trained prompt."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    alias: str = DEFAULT_ALIAS
    """The alias that moves to the new version. "-": none; empty: "default"."""
    gate: PublishGate | None = None
    wait_until_served_seconds: float | None = bounded(None, 0, MAX_WAIT_UNTIL_SERVED_SECONDS, above_low=True)
    """Keep the job running until every live replica serves the version or one refuses it, at most this long. None: the
    job ends when the version is published.
    """

    @property
    def moved_alias(self) -> str:
        """The alias that moves; empty if none does."""
        return moved_alias(self.alias)

    def check(self, path: str, violations: Violations) -> None:
        """Adds a violation for each field below `path` that is out of range."""
        check_bounds(self, path, violations)
        if self.moved_alias:
            with violations.collected():
                check_alias(self.moved_alias, f"{path}.alias")
        elif self.gate is not None and self.gate.beat_current:
            violations.add(
                f"{path}.gate.beat_current", "needs an alias: without one there is no current version to beat"
            )
        if self.gate is not None:
            _check_finite(self.gate.minimum_metric, f"{path}.gate.minimum_metric", violations)


@dataclass(frozen=True)
class Distillation:
    """How much the base model asks and answers about a text that a prompt is to replace."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    num_questions: int | None = bounded(None, MIN_QUESTIONS, MAX_QUESTIONS)
    """None: as many as the dataset has, or DEFAULT_QUESTIONS if it has none."""
    max_answer_tokens: int | None = bounded(None, 1, MAX_ANSWER_TOKENS)
    """None: DEFAULT_ANSWER_TOKENS, or as many as MAX_STUDY_TOKENS leaves to each question."""

    def check(self, path: str, violations: Violations) -> None:
        """Adds a violation for each field below `path` that is out of range."""
        check_bounds(self, path, violations)
        if self.num_questions and self.max_answer_tokens:
            total = self.num_questions * self.max_answer_tokens
            if total > MAX_STUDY_TOKENS:
                text = f"makes {total} answer tokens with num_questions; at most {MAX_STUDY_TOKENS} are allowed"
                violations.add(f"{path}.max_answer_tokens", text)


@dataclass(frozen=True)
class TuningSpec:
    """What to train. Only `prompt` and `dataset` are required; the service chooses and reports the rest.

    The Python client also takes a mapping in place of this class and of each class that its fields have:
    `hyperparameters={"num_steps": 100}`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    prompt: str
    dataset: Any
    """The examples: `softprompt.types.data.Dataset`. In a job, the name of the dataset in which they are stored."""
    base_model: str = ""
    """Id of a base model of the trainer; empty: its first one."""
    validation_dataset: Any = None
    """Separate held-out examples. None: `validation_fraction` of the training examples is held out."""
    validation_fraction: float | None = bounded(None, 0, 1, above_low=True, below_high=True)
    template: Template | None = None
    task: TaskKind | None = None
    labels: tuple[str, ...] = ()
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    publish: PublishPolicy = field(default_factory=PublishPolicy)
    priority: int = bounded(0, -MAX_PRIORITY, MAX_PRIORITY)
    max_runtime_seconds: float | None = bounded(None, 0, above_low=True)
    """Longest time on workers, over all attempts; None: the service's limit."""
    sampling_defaults: Sampling = field(default_factory=Sampling)
    annotations: Mapping[str, str] = field(default_factory=dict)
    deadline: datetime | None = None
    """The job fails with DEADLINE_EXCEEDED if it is not trained by then. Needs a time zone."""
    too_long: TooLong | None = None
    """How examples that are longer than a sequence are handled. None: REFUSE."""
    distillation: Distillation | None = None
    """Set: the dataset is a text and perhaps questions (`DOCUMENT`, `QUESTION`), which is distilled into the prompt."""

    def check(self, path: str, violations: Violations) -> None:
        """Adds a violation for each field below `path` that can be refused without looking at data and model."""
        with violations.collected():
            check_name(self.prompt, f"{path}.prompt")
        check_bounds(self, path, violations)
        self.hyperparameters.check(f"{path}.hyperparameters", violations)
        self.publish.check(f"{path}.publish", violations)
        if self.distillation is not None:
            self._check_distillation(self.distillation, path, violations)
        with violations.collected():
            self.sampling_defaults.check_defaults(f"{path}.sampling_defaults")
        _check_annotations(self.annotations, f"{path}.annotations", violations)

    def _check_distillation(self, distillation: Distillation, path: str, violations: Violations) -> None:
        distillation.check(f"{path}.distillation", violations)
        chosen = self.hyperparameters
        refused = {
            "validation_dataset": bool(self.validation_dataset),
            "labels": bool(self.labels),
            "task": self.task not in (None, TaskKind.GENERATION),
            "hyperparameters.search": bool(chosen.search),
            "hyperparameters.label_smoothing": bool(chosen.label_smoothing),
        }
        for name, is_given in refused.items():
            if is_given:
                violations.add(f"{path}.{name}", "can't be combined with a distillation")


def is_uri(dataset: object) -> bool:
    """Whether this is a URI, which the trainer reads itself, and not the name of a dataset."""
    return isinstance(dataset, str) and "://" in dataset


def moved_alias(alias: str) -> str:
    """The alias that a publication moves, by `PublishPolicy.alias`; empty if it moves none."""
    return "" if alias == NO_ALIAS else alias or DEFAULT_ALIAS


def _check_finite(value: float | None, path: str, violations: Violations) -> None:
    if value is not None and not abs(value) < float("inf"):
        violations.add(path, f"must be a finite number, is {value}")


def _check_annotations(annotations: Mapping[str, str], path: str, violations: Violations) -> None:
    if len(annotations) > MAX_ANNOTATIONS:
        violations.add(path, f"has {len(annotations)} entries; at most {MAX_ANNOTATIONS} are allowed")
    for key, value in list(annotations.items())[:MAX_ANNOTATIONS]:
        sizes_fit = 0 < len(key) <= MAX_ANNOTATION_KEY_CHARS and len(value) <= MAX_ANNOTATION_VALUE_CHARS
        if not sizes_fit or "\0" in key + value:
            text = (
                f"a key must have 1 to {MAX_ANNOTATION_KEY_CHARS} characters, a value at most "
                f"{MAX_ANNOTATION_VALUE_CHARS}, and neither may contain NUL"
            )
            violations.add(f"{path}[{key[:MAX_ANNOTATION_KEY_CHARS]!r}]", text)
