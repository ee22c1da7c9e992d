"""A tuning job as the trainer reports it: state, progress, result. Plain frozen dataclasses; field names are the
protocol's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from shared.values.enums import JobOrder as JobOrder
from shared.values.enums import JobState as JobState
from softprompt.types.common import Comparison
from softprompt.types.datasets import DatasetStatistics
from softprompt.types.spec import InitMethod, TuningSpec


@dataclass(frozen=True)
class TuningProgress:
    """How far a job is."""

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
    """Steps that were skipped because their loss or gradient was not finite."""
    num_prepared: int = 0
    """Examples whose tokens have been counted, while the job prepares its data."""
    num_examples: int = 0
    """Examples to prepare; 0 once the job trains."""


@dataclass(frozen=True)
class TuningError:
    """Why a job failed. `code` is a stable word; `field`, if set, names the field of the spec to change."""

    code: str
    message: str
    field: str


@dataclass(frozen=True)
class NearestToken:
    """The vocabulary token nearest to a virtual token, by cosine."""

    text: str
    cosine: float


@dataclass(frozen=True)
class SearchCandidate:
    """A candidate of a search. `end` is "worse" or "not finite" if the candidate was dropped, else empty."""

    learning_rate: float
    init_method: InitMethod | None
    num_steps: int
    metrics: Mapping[str, float]
    chosen: bool
    end: str


@dataclass(frozen=True)
class TuningResult:
    """What a job produced, with its metrics on held-out examples."""

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
    """The version that the alias named at the comparison; `current_metrics` are its metrics."""
    served_by_all: bool | None
    """None unless the job waited for it."""
    serving: str
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


@dataclass(frozen=True)
class TuningJob:
    """A tuning job. `spec` is the caller's; `effective_spec` has the service's choices."""

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
    """An estimate while the job is queued."""
    best_prompt_kept: bool
    """The job ended without a version and its best prompt is kept; `continue_job` starts from it."""
