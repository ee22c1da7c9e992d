"""The whole state of a run as bytes: safetensors with JSON in its metadata, no pickle. Kilobytes to a few megabytes.

    t{i}.{parameter}, t{i}.{parameter}.m, t{i}.{parameter}.v      trainee i: parameter and optimizer moments, float32
    best                                                        the best matrix so far
    metadata["state"]                                           RunState as JSON

Batches are a function of seed and step, so step is the whole data cursor, and a resumed run continues the same trajectory exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from shared.errors import DamagedBlob
from shared.soft_prompt import SoftPrompt
from trainer_service.training.events import TaskData
from trainer_service.training.reparameterise import effective_matrix
from trainer_service.training.spec import Example, Init, TrainingSpec
from trainer_service.training.trainee import Trainee

FORMAT = 1


class TraineeState(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    learning_rate: float
    init: Init
    step: int
    num_updates: int


class EvaluationRecord(BaseModel):
    """One evaluation; `score` is what checkpoints are compared by (higher is better)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    step: int
    metrics: dict[str, float]
    score: tuple[float, float]


class RunState(BaseModel):
    """Everything but tensors. `digest` is of spec and data: a checkpoint of something else is not resumed from."""

    model_config = ConfigDict(extra="forbid")
    format: int = FORMAT
    digest: str
    trainees: list[TraineeState] = []
    history: list[EvaluationRecord] = []
    best_step: int = 0
    best_score: tuple[float, float] | None = None
    template_metrics: dict[str, float] | None = None
    stale_evaluations: int = 0


def digest_of_files(spec: TrainingSpec, data: TaskData) -> str:
    """`digest_of` for examples in files, without reading them."""
    digest = hashlib.blake2b(spec.model_dump_json().encode(), digest_size=16)
    parts = data.dataset.digest, "" if data.validation is None else data.validation.digest, data.validation_fraction, data.seed
    digest.update(repr(parts).encode())
    return digest.hexdigest()


def digest_of(spec: TrainingSpec, train: Sequence[Example], validation: Sequence[Example]) -> str:
    digest = hashlib.blake2b(spec.model_dump_json().encode(), digest_size=16)
    for examples in (train, validation):
        digest.update(b"\0")
        for example in examples:
            digest.update(repr((example.input, example.output, example.label, example.messages)).encode())
    return digest.hexdigest()


def write_checkpoint(state: RunState, trainees: Sequence[Trainee], best: torch.Tensor | None) -> bytes:
    state.trainees = [
        TraineeState(
            learning_rate=trainee.candidate.learning_rate,
            init=trainee.candidate.init,
            step=trainee.step,
            num_updates=trainee.optimizer.num_updates,
        )
        for trainee in trainees
    ]
    tensors = dict[str, torch.Tensor]()
    for index, trainee in enumerate(trainees):
        for name, parameter in trainee.parameters.items():
            tensors[f"t{index}.{name}"] = parameter.detach()
        for name in trainee.optimizer.parameters:
            tensors[f"t{index}.{name}.m"] = trainee.optimizer.first[name]
            tensors[f"t{index}.{name}.v"] = trainee.optimizer.second[name]
    if best is not None:
        tensors["best"] = best
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
    if state.format != FORMAT or not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise DamagedBlob("the checkpoint is of another format or has values that are not finite")
    return state, tensors


def best_prompt(data: bytes) -> SoftPrompt:
    """The best matrix of a checkpoint; before the first evaluation, the latest. Raises DamagedBlob."""
    _, tensors = read_checkpoint(data)
    if "best" not in tensors:
        prefix = "t0."
        parameters = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        return SoftPrompt(effective_matrix(parameters).float())
    return SoftPrompt(tensors["best"].float())


def restore(trainee: Trainee, saved: TraineeState, tensors: dict[str, torch.Tensor], index: int) -> None:
    """Put a trainee back to where it was. Raises DamagedBlob if shapes differ."""
    pairs = [(parameter, f"t{index}.{name}") for name, parameter in trainee.parameters.items()]
    for name in trainee.optimizer.parameters:
        pairs += [(trainee.optimizer.first[name], f"t{index}.{name}.m"), (trainee.optimizer.second[name], f"t{index}.{name}.v")]
    for target, name in pairs:
        if name not in tensors or tensors[name].shape != target.shape:
            raise DamagedBlob("the checkpoint does not fit the job")
        with torch.no_grad():
            target.copy_(tensors[name])
    trainee.step, trainee.optimizer.num_updates = saved.step, saved.num_updates
