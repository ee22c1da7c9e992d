"""The tasks that a cohort receives and the events that it returns. Plain data that crosses process boundaries.

Order per job: Preparing any number of times, Started, then any number of StepDone / Evaluated / Checkpointed, then
Judging any number of times, and exactly one of Finished / Failed / Stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared.prompt.manifest import GoldenRecord
from shared.prompt.prefix import Prefix
from shared.values.report import HeldOutAnswers
from shared.values.results import DistillationResult, EncodingStatistics, NearestToken
from trainer_service.training.comparison import Comparison, Estimate
from trainer_service.training.spec import Example, Init, TrainingSpec

if TYPE_CHECKING:
    from trainer_service.training.data.encoding import EncodedSplit


@dataclass(frozen=True)
class DatasetFile:
    """A stored dataset, identified by its content: any file with this digest is the dataset."""

    digest: str
    """SHA-256 of the bytes, 64 hexadecimal digits."""
    path: str
    """Path on the trainer's node; it may not exist on a worker's node."""
    size_bytes: int


@dataclass(frozen=True)
class TaskData:
    """The files with a task's examples, which the worker reads."""

    dataset: DatasetFile
    validation: DatasetFile | None
    """A separate dataset of held-out examples; None: a share of the training examples is held out."""
    validation_fraction: float
    """Share of the training examples to hold out; only used without a validation dataset."""
    seed: int
    """Seed of the split."""

    @property
    def files(self) -> tuple[DatasetFile, ...]:
        """All files that the worker must read."""
        return (self.dataset,) if self.validation is None else (self.dataset, self.validation)


@dataclass(frozen=True)
class TrainingTask:
    """One job, ready to train. `attempt` is a fencing number: events of earlier attempts are ignored."""

    job_id: str
    attempt: int
    spec: TrainingSpec
    train: Sequence[Example] = ()
    validation: Sequence[Example] = ()
    source: Prefix | None = None
    """The initial prefix of a FROM_PROMPT job."""
    current: Prefix | None = None
    """The alias's current version, evaluated on the same held-out data for the quality gate."""
    current_version: str = ""
    """Name of the alias's current version. Set even if that version can't be compared on this job's data."""
    foreign_job: str | None = None
    """The job that trained `current_version` if that is of another base model (empty: none did); else None."""
    checkpoint: bytes | None = None
    """The checkpoint to resume from."""
    priority: int = 0
    tenant: str = ""
    """Jobs of one tenant share the tenant's part of each step."""
    weight: float = 1.0
    """The tenant's weight when the job was claimed."""
    traceparent: str = ""
    """W3C trace context of the parent of this attempt's span."""
    data: TaskData | None = None
    """The source of `train` and `validation` until the worker reads them; this keeps the task's message small."""
    digest: str = ""
    """`checkpoint.digest_of` this task if already computed; it takes seconds for a large dataset."""
    encoded: EncodedSplit | None = None
    """`train` and `validation` as token ids; None: not encoded yet."""
    num_overlapping: int | None = None
    """`EncodedSplit.num_overlapping`; None: not counted yet."""


@dataclass(frozen=True)
class TrainingResult:
    """The best checkpoint and its held-out metrics, next to those of the bare model and the alias's current version."""

    prefix: Prefix
    best_step: int
    num_steps: int
    metrics: Mapping[str, float]
    bare_metrics: Mapping[str, float]
    """Metrics of the frozen model given the input alone, as for a request without a prompt."""
    template_metrics: Mapping[str, float]
    """Metrics of the frozen model given the rendered template, without a prompt."""
    current_metrics: Mapping[str, float] = field(default_factory=dict)
    golden: tuple[GoldenRecord, ...] = ()
    nearest_tokens: tuple[NearestToken, ...] = ()
    score_stability: float = 0.0
    """Standard deviation of the metric over the last evaluations."""
    learning_rate: float = 0.0
    """The peak learning rate of the training: the spec's, or the one chosen by a search."""
    statistics: EncodingStatistics | None = None
    """Statistics of the job's data."""
    init: Init | None = None
    """The init of the training: the spec's, or the one chosen by a search."""
    instructed_metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the frozen model given an instruction and the input (`baselines`)."""
    few_shot_metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the frozen model given the instruction, `num_shots` training examples and the input."""
    num_shots: int = 0
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """The prompt compared with bare_model (template alone), instructed_model, few_shot_model and current_version."""
    estimate: Estimate | None = None
    """The prompt's metric and its interval."""
    num_judging: int = 0
    """Number of held-out examples behind all these metrics."""
    is_apart: bool = False
    """Whether no example judged a checkpoint that it helped to choose."""
    tried: tuple[TriedCandidate, ...] = ()
    """The candidates of a search; empty without a search."""
    num_skipped: int = 0
    """Steps of this prompt whose gradient was not finite."""
    num_tokens: int = 0
    """Tokens that the steps computed, for all candidates of a search together."""
    answers: HeldOutAnswers = field(default_factory=HeldOutAnswers)
    """Answers to the examples behind these metrics. They are not part of the published version."""
    distillation: DistillationResult | None = None
    """None for a job with examples."""


@dataclass(frozen=True)
class TriedCandidate:
    """One candidate of a search."""

    learning_rate: float
    init: Init
    num_steps: int
    losses: tuple[float, ...]
    """Its mean training loss at each comparison, over the steps since the one before."""
    metrics: Mapping[str, float]
    """Held-out metrics of its latest evaluation; empty if it was dropped."""
    chosen: bool
    end: str
    """Why the candidate was dropped: "worse" or "not finite"; empty if it was trained to the end."""


@dataclass(frozen=True)
class TrainingEvent:
    """An event of one attempt of one job."""

    job_id: str
    attempt: int


@dataclass(frozen=True)
class Preparing(TrainingEvent):
    """Progress of tokenizing, or of a distillation's self-study; any number of times before Started."""

    num_prepared: int
    num_examples: int


@dataclass(frozen=True)
class Started(TrainingEvent):
    """The job's examples are encoded and training begins or resumes."""

    statistics: EncodingStatistics
    step: int
    """0, or the step of the checkpoint."""
    notes: tuple[str, ...] = ()
    """Notes for the user about the job's data; the same in every attempt."""
    restart_reason: str = ""
    """Why the attempt could not resume from its checkpoint; empty if it could, or had none."""


@dataclass(frozen=True)
class StepDone(TrainingEvent):
    """One optimizer step of the job."""

    step: int
    num_steps: int
    loss: float
    grad_norm: float
    learning_rate: float
    num_examples: int
    num_tokens: int
    """Text positions computed for this job in this step."""
    step_seconds: float
    """Wall time of the cohort step."""
    num_skipped: int = 0
    """Prompts of this job (a search trains several) that this step skipped because their gradient was not finite.

    If all were skipped, `loss` and `grad_norm` are NaN.
    """
    total_skipped: int = 0
    """Skipped steps since step 0, summed over the prompts still in training."""
    evaluation_seconds: float = 0.0
    """Estimated time of all evaluations that are still to come; 0 if none was measured yet."""


@dataclass(frozen=True)
class Evaluated(TrainingEvent):
    """One evaluation on held-out examples."""

    step: int
    metrics: Mapping[str, float]
    is_best: bool


@dataclass(frozen=True)
class Judging(TrainingEvent):
    """Progress of the final evaluation: `num_measured` of `num_models` are measured; then answers are written."""

    num_measured: int
    num_models: int
    seconds_left: float
    """Estimated time until it ends."""


@dataclass(frozen=True)
class Checkpointed(TrainingEvent):
    """`data` is a checkpoint (`training.checkpoint`) taken after `step`."""

    step: int
    data: bytes


@dataclass(frozen=True)
class Finished(TrainingEvent):
    """Training has finished."""

    result: TrainingResult


@dataclass(frozen=True)
class Stopped(TrainingEvent):
    """The job left the cohort on request (cancel, pause, drain).

    `data` is a checkpoint, None if training had not begun; `best` is the best prompt so far.
    """

    step: int
    data: bytes | None
    best: Prefix | None = None


@dataclass(frozen=True)
class Failed(TrainingEvent):
    """The job failed. `code`: NAN_LOSS, BAD_DATA, OUT_OF_MEMORY, DATA_UNAVAILABLE, INTERNAL.

    `retryable`: the same job may succeed alone in a separate process. DATA_UNAVAILABLE: the worker could not read the
    job's dataset; the job returns to the queue.
    """

    code: str
    message: str
    field: str = ""
    retryable: bool = False
