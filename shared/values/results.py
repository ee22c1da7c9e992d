"""What a tuning job reports: its progress, its data, its result, and why it failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from shared.values.enums import InitMethod

_STORED: dict[str, Any] = {"extra": "forbid", "ser_json_inf_nan": "constants"}
"""How pydantic writes these values: a loss may be infinite, and stays so in JSON."""


@dataclass(frozen=True)
class TuningProgress:
    """How far a job is. Losses are means over target tokens."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    step: int = 0
    num_steps: int = 0
    train_loss: float = 0.0
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Held-out metrics of the last evaluation."""
    best_step: int = 0
    examples_per_second: float = 0.0
    estimated_end_time: datetime | None = None
    num_skipped_steps: int = 0
    """Steps that were skipped because their loss or gradient was not finite."""
    num_prepared: int = 0
    """Examples whose tokens have been counted, while the job prepares its data."""
    num_examples: int = 0
    """Examples to prepare; 0 once the job trains."""
    num_measured: int = 0
    """Models that the final evaluation has measured. After the last one, it writes held-out answers."""
    num_models: int = 0
    """Models that the final evaluation measures: the prompt and those that it is compared with; 0 before it."""


@dataclass(frozen=True)
class TuningError:
    """Why a job failed.

    `code` is a stable word: NAN_LOSS, BAD_DATA, OUT_OF_MEMORY, MAX_RUNTIME, DEADLINE_EXCEEDED, WORKER_LOST,
    BASE_MODEL_FAILED, PUBLISH_FAILED or INTERNAL. `field`, if set, names the field of the spec to change.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    code: str
    message: str
    field: str = ""


@dataclass(frozen=True)
class EncodingStatistics:
    """Counts of a job's examples after tokenization. Lengths are in tokens, without the virtual ones."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    num_train: int
    num_validation: int
    num_dropped: int = 0
    """Examples left out because they are too long."""
    num_overlapping: int = 0
    """Held-out examples whose input, apart from case and white space, is also in the training part. They make the score
    too good.
    """
    mean_input_tokens: float = 0.0
    max_input_tokens: int = 0
    mean_target_tokens: float = 0.0
    max_target_tokens: int = 0
    num_truncated: int = 0
    """Examples whose inputs were truncated because they are too long."""


@dataclass(frozen=True)
class DatasetStatistics(EncodingStatistics):
    """Counts of a job's examples, of their tokens and of repeated examples."""

    num_distinct_inputs: int = 0
    num_duplicates: int = 0
    """Examples that repeat an earlier one exactly."""
    num_near_duplicates: int = 0
    """Examples whose input is nearly that of an earlier one."""
    num_contradictions: int = 0
    """Examples whose input also has another label."""
    label_notes: tuple[str, ...] = ()
    """Notes on rare labels that are close to a frequent one, possibly misspellings of it."""


@dataclass(frozen=True)
class NearestToken:
    """The vocabulary token nearest to a virtual token, by cosine."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    text: str
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """A tuned prompt compared with another use of its base model, on the same held-out examples."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    rival: str
    """ "bare_model", "instructed_model", "few_shot_model" or "current_version"."""
    metric: str
    value: float
    rival_value: float
    difference: float
    """Positive where the tuned prompt is better."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval of `difference`; None: too few examples."""
    num_examples: int = 0
    beats: bool = False
    """There are enough examples, and the whole interval is above 0."""


@dataclass(frozen=True)
class SearchCandidate:
    """A candidate of a search over learning rates and initialisations."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    learning_rate: float
    init_method: InitMethod | None
    num_steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Held-out metrics of its last evaluation, on the examples that choose; empty if the candidate was dropped."""
    chosen: bool = False
    end: str = ""
    """ "worse" or "not finite" if the candidate was dropped, else empty."""
    losses: tuple[float, ...] = ()
    """Its mean training loss at each comparison of candidates, over the steps since the one before."""


@dataclass(frozen=True)
class DistillationResult:
    """How much of its teacher a distilled prompt keeps on held-out questions, and what it saves.

    The teacher is the base model with the text in its context.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    num_questions: int
    """Questions to train on."""
    num_held_out: int
    num_answer_tokens: int
    """Tokens of the teacher's answers to all questions."""
    document_tokens: int
    """Tokens that the text takes in each request to the teacher."""
    num_virtual_tokens: int
    kl: float
    """KL divergence of the tuned prompt from the teacher, nats per token."""
    bare_kl: float
    """The same of the bare model."""
    agreement: float
    """Share of the answers' tokens that are the prompt's most probable ones, given the tokens before."""
    bare_agreement: float
    teacher_prefill_seconds: float | None = None
    """Time to compute a held-out question of median length with the text, on the worker; None: not measured."""
    prompt_prefill_seconds: float | None = None
    """The same after the prompt, whose keys and values are known."""


@dataclass(frozen=True)
class TuningResult:
    """What a job produced, with its metrics on held-out examples."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    published: bool = False
    version: str = ""
    """ "prompts/{prompt}/versions/{n}", if published."""
    digest: str = ""
    alias_moved: bool = False
    gate_decision: str = ""
    """Why the gate decided so, with the numbers."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    bare_metrics: Mapping[str, float] = field(default_factory=dict)
    template_metrics: Mapping[str, float] = field(default_factory=dict)
    current_metrics: Mapping[str, float] = field(default_factory=dict)
    nearest_tokens: tuple[NearestToken, ...] = ()
    score_stability: float = 0.0
    best_step: int = 0
    current_version: str = ""
    """The version that the alias named at the comparison; `current_metrics` are its metrics."""
    served_by_all: bool | None = None
    """None unless the job waited for it."""
    serving: str = ""
    """Number of live replicas that served the version when the job ended, and which replicas refused it and why."""
    instructed_metrics: Mapping[str, float] = field(default_factory=dict)
    few_shot_metrics: Mapping[str, float] = field(default_factory=dict)
    num_shots: int = 0
    """Training examples in each few-shot input."""
    comparisons: tuple[Comparison, ...] = ()
    verdict: str = ""
    """Which other uses of the base model the prompt beats and which it does not beat."""
    metric_low: float | None = None
    metric_high: float | None = None
    """Ends of the 95 % interval of the job's metric; None: too few held-out examples."""
    num_judging: int = 0
    """Number of held-out examples of all metrics here."""
    judged_apart: bool = False
    """Whether no example judged a checkpoint that it had helped to choose."""
    candidates: tuple[SearchCandidate, ...] = ()
    """The candidates of a search."""
    num_skipped_steps: int = 0
    distillation: DistillationResult | None = None
    """None for a job with examples."""
