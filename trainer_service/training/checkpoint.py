"""The whole state of a run as bytes: safetensors with JSON in its metadata, no pickle. Kilobytes to a few megabytes.

    t{i}.{parameter}, t{i}.{parameter}.m, t{i}.{parameter}.v      trainee i: parameter and optimizer moments, float32
    best                                                        the best prefix so far (a soft prompt's matrix)
    study.*                                                     the self-study of a distillation
    metadata["state"]                                           RunState as JSON

Batches are a function of seed and step, so step is the whole data cursor, and a resumed run continues the same
trajectory exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from shared.errors import DamagedBlob
from shared.prompt.prefix import Prefix
from shared.values.enums import TemplateFormat
from trainer_service.training.recipe.leaves import best_tensors, leaves_of, read_best
from trainer_service.training.results import Results
from trainer_service.training.spec import Example, Init, InitMethod, Metric, TrainingSpec
from trainer_service.training.trainee import Trainee

FORMAT = 5
_FORMATS = (1, 2, 3, 4, FORMAT)
"""Format 1 has the digest of `digest_of_format_1`; fields added since then have their defaults. Up to format 2, the
loss of a classification weighed a label by its number of tokens; up to format 3, BLEU counted runs of four words in
short answers, too; up to format 4, a search compared its candidates by held-out scores.
"""


class TraineeState(BaseModel):
    """The numbers of one trainee; its tensors are stored beside the state."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    learning_rate: float
    init: Init
    step: int
    num_updates: int
    index: int = 0
    num_skipped: int = 0
    excess_skips: int = 0


class TriedCandidate(BaseModel):
    """One candidate of a search."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
    learning_rate: float
    init: Init
    steps: int = 0
    losses: list[float] = []
    """Its mean training loss at each comparison, over the steps since the one before."""
    loss_sum: float = 0.0
    """Sum of its training losses since the latest comparison."""
    num_losses: int = 0
    """The number of these losses; a skipped step has none."""
    metrics: dict[str, float] = {}
    """Held-out metrics of its latest evaluation. Only the candidate that is left is evaluated."""
    end: str = ""
    """"worse": dropped at a comparison. "not finite": dropped because its gradients were not finite.

    Empty: still in training, or trained to the end.
    """

    def add_loss(self, loss: float) -> None:
        """Add a step's training loss, a finite number."""
        self.loss_sum, self.num_losses = self.loss_sum + loss, self.num_losses + 1

    def end_comparison(self) -> None:
        """Move the losses since the latest comparison to `losses`, as their mean."""
        if self.num_losses:
            self.losses.append(self.loss_sum / self.num_losses)
        self.loss_sum, self.num_losses = 0.0, 0


class FoldChoice(BaseModel):
    """The best checkpoint so far by one half of the held-out examples. `results`: its evaluation on all examples."""

    model_config = ConfigDict(extra="forbid")
    step: int = 0
    score: tuple[float, float] | None = None
    top: float = -1e30
    """The highest value of the metric on this half so far."""
    results: Results | None = None


class EvaluationRecord(BaseModel):
    """One evaluation. Checkpoints are compared by `score` (higher is better)."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")
    step: int
    metrics: dict[str, float]
    score: tuple[float, float]


class RunState(BaseModel):
    """A run without its tensors. It never resumes with another `digest`, which covers settings and examples."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
    format: int = FORMAT
    digest: str
    trainees: list[TraineeState] = []
    history: list[EvaluationRecord] = []
    best_step: int = 0
    best_score: tuple[float, float] | None = None
    template_metrics: dict[str, float] | None = None
    stale_evaluations: int = 0
    template_results: Results | None = None
    """The results from which `template_metrics` are computed."""
    folds: list[FoldChoice] = []
    """The choices of both halves, with cross-fitting (`held_out`)."""
    measures_distinct: bool = False
    """Equal held-out examples were measured once. Earlier releases measured each."""
    groups_similar: bool = False
    """Held-out inputs that differ only in case and white space were in one part. Earlier releases could divide them."""
    tried: list[TriedCandidate] = []
    best_candidate: int = 0
    """Index in `tried` of the candidate that the best prefix belongs to."""
    num_tokens: int = 0
    """Tokens that the steps computed, for all candidates of a search together."""
    train_seconds: float = 0.0
    """Time of the cohort's steps in which the run took part."""


def digest_of(spec: TrainingSpec, train: Sequence[Example], validation: Sequence[Example]) -> str:
    """The digests of the settings and of the examples, separated by a colon.

    Fields with their default value are left out, so a release that adds a field can resume older checkpoints. So are
    two values that were defaults in earlier releases.
    """
    once_defaults: Any = {"template": {"format"}} if spec.template.format is TemplateFormat.TEXT else {}
    if spec.hyperparameters.init.method is InitMethod.TEXT:
        once_defaults["hyperparameters"] = {"init": {"method"}}
    written = spec.model_dump_json(exclude_defaults=True, exclude=once_defaults)
    settings = hashlib.blake2b(written.encode(), digest_size=16)
    data = hashlib.blake2b(digest_size=16)
    for examples in (train, validation):
        data.update(b"\0")
        for example in examples:
            turns = [(turn.role, turn.content) for turn in example.messages]
            data.update(repr((example.input, example.output, example.label, turns)).encode())
    return f"{settings.hexdigest()}:{data.hexdigest()}"


def digest_of_format_1(spec: TrainingSpec, train: Sequence[Example], validation: Sequence[Example]) -> str:
    """The digest of earlier releases, over the fields they knew, which are set in a stored spec; newer ones are not."""
    digest = hashlib.blake2b(spec.model_dump_json(exclude_unset=True).encode(), digest_size=16)
    for examples in (train, validation):
        digest.update(b"\0")
        for example in examples:
            digest.update(repr((example.input, example.output, example.label, example.messages)).encode())
    return digest.hexdigest()


def has_other_scores(state: RunState, spec: TrainingSpec) -> bool:
    """Whether the release that wrote the checkpoint computed the job's scores otherwise, so that they don't compare."""
    is_bleu = spec.hyperparameters.metric is Metric.BLEU
    return (state.format < 3 and bool(spec.labels)) or (state.format < 4 and is_bleu)


def forget_evaluations(state: RunState) -> None:
    """Remove the losses and what was chosen by them, so that the next evaluation is the best so far."""
    state.history, state.folds, state.best_score, state.template_metrics = [], [], None, None


def check_match(
    state: RunState, digest: str, spec: TrainingSpec, train: Sequence[Example], validation: Sequence[Example]
) -> None:
    """Raises DamagedBlob with the reason if a run with these settings and examples can't resume from the checkpoint."""
    if not state.trainees:
        raise DamagedBlob("the checkpoint is empty")
    if state.format < 5 and spec.hyperparameters.search:
        raise DamagedBlob("the checkpoint is of a release that compared a search's candidates by held-out scores")
    if state.format == 1:
        if state.digest != digest_of_format_1(spec, train, validation):
            raise DamagedBlob(
                "this release reads the job's settings or examples differently from the one that wrote the checkpoint"
            )
        return
    settings, _, data = digest.partition(":")
    if state.digest == digest:
        return
    if state.digest.startswith(settings):
        raise DamagedBlob(
            "this release splits or reads the job's examples differently from the one that wrote the checkpoint"
        )
    if state.digest.endswith(data):
        raise DamagedBlob("this release reads the job's settings differently from the one that wrote the checkpoint")
    raise DamagedBlob("the checkpoint is of another job")


def write_checkpoint(
    state: RunState, trainees: Sequence[Trainee], best: Prefix | None, more: Mapping[str, torch.Tensor] | None
) -> bytes:
    """The checkpoint's bytes. Updates `state.trainees` from the trainees. `more`: tensors of a distillation's study,
    which may be there before the trainees.
    """
    state.trainees = [
        TraineeState(
            learning_rate=trainee.candidate.learning_rate,
            init=trainee.candidate.init,
            step=trainee.step,
            num_updates=trainee.optimizer.num_updates,
            index=trainee.index,
            num_skipped=trainee.num_skipped,
            excess_skips=trainee.excess_skips,
        )
        for trainee in trainees
    ]
    tensors = dict[str, torch.Tensor](more or {})
    for index, trainee in enumerate(trainees):
        for name, parameter in trainee.parameters.items():
            tensors[f"t{index}.{name}"] = parameter.detach()
        for name in trainee.optimizer.parameters:
            tensors[f"t{index}.{name}.m"] = trainee.optimizer.first[name]
            tensors[f"t{index}.{name}.v"] = trainee.optimizer.second[name]
    if best is not None:
        tensors |= best_tensors(best)
    cpu = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    data: bytes = save(cpu, {"state": state.model_dump_json()})
    return data


def read_checkpoint(data: bytes) -> tuple[RunState, dict[str, torch.Tensor]]:
    """The state and its tensors on the CPU. Raises DamagedBlob for bytes that are not a checkpoint."""
    try:
        tensors: dict[str, torch.Tensor] = load(data)
        length = int.from_bytes(data[:8], "little")
        state = RunState.model_validate_json(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
    except (SafetensorError, ValidationError, KeyError, TypeError, ValueError) as error:
        raise DamagedBlob("the checkpoint can't be read") from error
    if state.format not in _FORMATS or not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise DamagedBlob("the checkpoint is of another format or has values that are not finite")
    return state, tensors


def best_prefix(data: bytes) -> Prefix:
    """The best prefix of a checkpoint; before the first evaluation, the latest. Raises DamagedBlob."""
    _, tensors = read_checkpoint(data)
    first = "t0."
    parameters = {
        name.removeprefix(first): tensor
        for name, tensor in tensors.items()
        if name.startswith(first) and not name.endswith((".m", ".v"))
    }
    if not parameters:
        raise DamagedBlob("the job ended before its first step, so it has no prompt to start from")
    leaves = leaves_of(parameters)
    return read_best(tensors, leaves.kind) or leaves.prefix()


def restore(trainee: Trainee, saved: TraineeState, tensors: dict[str, torch.Tensor], index: int) -> None:
    """Restore a trainee's parameters, optimizer and counters. Raises DamagedBlob if shapes differ."""
    pairs = [(parameter, f"t{index}.{name}") for name, parameter in trainee.parameters.items()]
    for name in trainee.optimizer.parameters:
        pairs += [
            (trainee.optimizer.first[name], f"t{index}.{name}.m"),
            (trainee.optimizer.second[name], f"t{index}.{name}.v"),
        ]
    for target, name in pairs:
        if name not in tensors or tensors[name].shape != target.shape:
            raise DamagedBlob("the checkpoint does not fit the job")
        with torch.no_grad():
            target.copy_(tensors[name])
    trainee.step, trainee.optimizer.num_updates = saved.step, saved.num_updates
    trainee.num_skipped, trainee.excess_skips = saved.num_skipped, saved.excess_skips
