"""A tuning job as the trainer reports it: state, progress, result. Plain frozen dataclasses; field names are the protocol's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from softprompt.types.common import Comparison
from softprompt.types.datasets import DatasetStatistics
from softprompt.types.spec import InitMethod, TuningSpec


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
    num_prepared: int = 0
    """Examples whose tokens are counted, while the job prepares its data."""
    num_examples: int = 0
    """All that it prepares; 0 once it trains."""


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
