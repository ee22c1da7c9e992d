"""What a cohort tells about its jobs, and what a job brings to a cohort. Plain data: it crosses process borders within
one program.

Order per job: Preparing any number of times, Started, then any number of StepDone / Evaluated / Checkpointed, then
exactly one of Finished / Failed / Stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared.prompt.blob import GoldenRecord
from shared.prompt.soft_prompt import SoftPrompt
from shared.values.results import EncodingStatistics, NearestToken
from trainer_service.training.comparison import Comparison, Estimate
from trainer_service.training.spec import Example, Init, TrainingSpec

if TYPE_CHECKING:
    from trainer_service.training.data.encoding import EncodedSplit


@dataclass(frozen=True)
class DatasetFile:
    """A stored dataset, named by its content: any node that has a file with this digest has the dataset."""

    digest: str
    """SHA-256 of the bytes, 64 hexadecimal digits."""
    path: str
    """Where the trainer has it; a worker on another node may find nothing there."""
    size_bytes: int


@dataclass(frozen=True)
class TaskData:
    """The examples of a task, to be read where it is trained."""

    dataset: DatasetFile
    validation: DatasetFile | None
    """Held-out examples of their own; None: a share of the training examples is held out."""
    validation_fraction: float
    """Of the training examples; only used without a validation dataset."""
    seed: int
    """Of the split."""

    @property
    def files(self) -> tuple[DatasetFile, ...]:
        return (self.dataset,) if self.validation is None else (self.dataset, self.validation)


@dataclass(frozen=True)
class TrainingTask:
    """One job, ready to train. `attempt` fences: what an earlier attempt still says is ignored."""

    job_id: str
    attempt: int
    spec: TrainingSpec
    train: Sequence[Example] = ()
    validation: Sequence[Example] = ()
    source: SoftPrompt | None = None
    """FROM_PROMPT: the matrix to start from."""
    current: SoftPrompt | None = None
    """What the alias serves now, evaluated on the same held-out data for the gate."""
    current_version: str = ""
    """Name of the version that the alias names now, also where its numbers would mean nothing here."""
    checkpoint: bytes | None = None
    """Resume exactly here."""
    priority: int = 0
    tenant: str = ""
    """Jobs of one tenant share its part of each step."""
    weight: float = 1.0
    """Of the tenant, as it was when the job was claimed."""
    traceparent: str = ""
    """W3C trace context that this attempt's span belongs under."""
    data: TaskData | None = None
    """Where `train` and `validation` come from, while they are not read yet: a task is small on its way to a worker."""
    digest: str = ""
    """`checkpoint.digest_of` this task, where it is known already: a large dataset takes seconds."""
    encoded: EncodedSplit | None = None
    """`train` and `validation` as token ids; None: still to be encoded."""
    num_overlapping: int | None = None
    """`dataset.count_overlap` of its examples; None: not counted yet."""


@dataclass(frozen=True)
class TrainingResult:
    """The best checkpoint and how it does on held-out data, beside the bare model and the alias's current version."""

    soft_prompt: SoftPrompt
    best_step: int
    num_steps: int
    metrics: Mapping[str, float]
    bare_metrics: Mapping[str, float]
    """Of the frozen model given the input alone, as a request that names no prompt is answered."""
    template_metrics: Mapping[str, float]
    """The frozen model given the rendered template, no prompt."""
    current_metrics: Mapping[str, float] = field(default_factory=dict)
    golden: tuple[GoldenRecord, ...] = ()
    nearest_tokens: tuple[NearestToken, ...] = ()
    score_stability: float = 0.0
    """Standard deviation of the metric over the last evaluations."""
    learning_rate: float = 0.0
    """The peak rate that was trained with: the spec's, or what a search chose."""
    statistics: EncodingStatistics | None = None
    """Of the data that it was trained on."""
    init: Init | None = None
    """The init that was trained from: the spec's, or what a search chose."""
    instructed_metrics: Mapping[str, float] = field(default_factory=dict)
    """The frozen model given an instruction and the input (`baselines`)."""
    few_shot_metrics: Mapping[str, float] = field(default_factory=dict)
    """The frozen model given the instruction, `num_shots` training examples and the input."""
    num_shots: int = 0
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """Of the prompt with "bare_model" (the template alone), "instructed_model", "few_shot_model" and "current_version".
    """
    estimate: Estimate | None = None
    """The prompt's metric and its interval."""
    num_judging: int = 0
    """Held-out examples that all these numbers are of."""
    is_apart: bool = False
    """Whether no example judged a checkpoint that it had helped to choose."""
    tried: tuple[TriedCandidate, ...] = ()
    """What a search tried; empty without one."""
    num_skipped: int = 0
    """Steps of this prompt whose gradient was not finite."""


@dataclass(frozen=True)
class TriedCandidate:
    """One candidate of a search. `metrics`: held out, of the last evaluation that it took part in."""

    learning_rate: float
    init: Init
    num_steps: int
    metrics: Mapping[str, float]
    chosen: bool
    end: str
    """Why it left: "worse" or "not finite"; empty if it was trained to the end."""


@dataclass(frozen=True)
class TrainingEvent:
    """Something happened to one attempt of one job."""

    job_id: str
    attempt: int


@dataclass(frozen=True)
class Preparing(TrainingEvent):
    """The job's examples are being turned into tokens; it does not train yet. Comes before Started, any number of
    times.
    """

    num_prepared: int
    num_examples: int


@dataclass(frozen=True)
class Started(TrainingEvent):
    statistics: EncodingStatistics
    step: int
    """0, or the step that was resumed from."""
    notes: tuple[str, ...] = ()
    """What a person should know about the job's data; the same in every attempt."""
    restart_reason: str = ""
    """Why the attempt could not go on from the checkpoint that it was given."""


@dataclass(frozen=True)
class StepDone(TrainingEvent):
    step: int
    num_steps: int
    loss: float
    grad_norm: float
    learning_rate: float
    num_examples: int
    num_tokens: int
    """Text positions computed for this job in this step."""
    step_seconds: float
    """Wall time of the whole cohort step that carried it."""
    num_skipped: int = 0
    """Prompts of this job (a search trains several) whose gradient was not finite in this step, so that the step left
    them unchanged. If that is all of them, `loss` and `grad_norm` are NaN.
    """
    total_skipped: int = 0
    """Such steps since step 0, over the prompts still in training."""


@dataclass(frozen=True)
class Evaluated(TrainingEvent):
    step: int
    metrics: Mapping[str, float]
    is_best: bool


@dataclass(frozen=True)
class Checkpointed(TrainingEvent):
    step: int
    data: bytes


@dataclass(frozen=True)
class Finished(TrainingEvent):
    result: TrainingResult


@dataclass(frozen=True)
class Stopped(TrainingEvent):
    """Left the cohort on request (cancel, pause, drain). `data` is a checkpoint, if it had begun; `best` the best
    prompt so far.
    """

    step: int
    data: bytes | None
    best: SoftPrompt | None = None


@dataclass(frozen=True)
class Failed(TrainingEvent):
    """`code`: NAN_LOSS, BAD_DATA, OUT_OF_MEMORY, DATA_UNAVAILABLE, INTERNAL. `retryable`: the same job may do better
    alone in a process of its own. DATA_UNAVAILABLE: the worker could not read the job's dataset; the job goes back to
    the queue.
    """

    code: str
    message: str
    field: str = ""
    retryable: bool = False
