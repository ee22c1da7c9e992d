"""The trainees with which a run begins: new ones, or those of its checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from shared.errors import DamagedBlob
from shared.model.base_model import BaseModel
from shared.prompt.prefix import Prefix
from trainer_service.training import checkpoint
from trainer_service.training.data.encoding import EncodedDataset, RowTokens
from trainer_service.training.events import TrainingTask
from trainer_service.training.recipe.demonstrations import demonstrations
from trainer_service.training.recipe.leaves import new_leaves, read_best
from trainer_service.training.search import candidates
from trainer_service.training.spec import InitMethod
from trainer_service.training.trainee import Candidate, Trainee

log = logging.getLogger(__name__)

MAX_COUNTED = 20_000
"""The most training examples whose tokens are counted for SAMPLE_VOCAB."""


@dataclass(frozen=True)
class Begun:
    """The beginning of a run. `restart_reason`: why the task's checkpoint can't be used; empty if it is used or
    there is none.
    """

    trainees: list[Trainee]
    state: checkpoint.RunState
    best: Prefix | None = None
    restart_reason: str = ""


def begin(task: TrainingTask, base_model: BaseModel, train: EncodedDataset, state: checkpoint.RunState) -> Begun:
    """Create the trainees, new or from the task's checkpoint. `state`: that of a new run."""
    reason = ""
    if task.checkpoint is not None:
        try:
            return _resumed(task.checkpoint, task, base_model, train, state.digest)
        except DamagedBlob as error:
            reason = error.message
            log.warning("job %s starts again from step 0: %s", task.job_id, reason)
    choices = candidates(task.spec)
    trainees = [_trainee(choice, index, task, base_model, train) for index, choice in enumerate(choices)]
    if len(choices) > 1:
        state.tried = [
            checkpoint.TriedCandidate(learning_rate=choice.learning_rate, init=choice.init) for choice in choices
        ]
    return Begun(trainees, state, restart_reason=reason)


def _resumed(data: bytes, task: TrainingTask, base_model: BaseModel, train: EncodedDataset, digest: str) -> Begun:
    """The run in a checkpoint. Raises DamagedBlob if this task can't resume from it."""
    saved, tensors = checkpoint.read_checkpoint(data)
    checkpoint.check_match(saved, digest, task.spec, task.train, task.validation)
    trainees = [
        _trainee(Candidate(state.learning_rate, state.init), state.index, task, base_model, train)
        for state in saved.trainees
    ]
    for index, (trainee, state) in enumerate(zip(trainees, saved.trainees, strict=True)):
        checkpoint.restore(trainee, state, tensors, index)
    if checkpoint.has_other_scores(saved, task.spec):
        checkpoint.forget_evaluations(saved)
    saved.format, saved.digest = checkpoint.FORMAT, digest
    return Begun(trainees, saved, read_best(tensors, task.spec.hyperparameters.kind))


def _trainee(
    candidate: Candidate, index: int, task: TrainingTask, base_model: BaseModel, train: EncodedDataset
) -> Trainee:
    hyper, method = task.spec.hyperparameters, candidate.init.method
    generator = torch.Generator().manual_seed(hyper.seed % 2**63)
    hidden: Mapping[RowTokens, tuple[int, ...]] | None = None
    texts: Iterable[tuple[int, ...]] = ()
    if method is InitMethod.SAMPLE_VOCAB:
        every = max(1, -(-len(train) // MAX_COUNTED))
        texts = (example.input_ids for example in train.examples[::every])
    elif method is InitMethod.DEMONSTRATIONS:
        first = base_model.tokenizer.bos_token_id
        shown = demonstrations(train.examples, hyper.num_virtual_tokens, hyper.seed, first)
        hidden, texts = shown.hidden, [shown.token_ids]
    leaves = new_leaves(base_model, candidate.init, hyper, generator, task.spec.labels, task.source, texts)
    return Trainee(candidate, leaves, hyper, index, hidden)
