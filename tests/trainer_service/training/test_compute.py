"""How often a training step waits for the device."""

from __future__ import annotations

from shared.model.base_model import BaseModel
from tests.host_waits import HostWaits
from tests.trainer_service.training.models import build
from tests.trainer_service.training.tasks import task
from trainer_service.training.attention.forward import PackedForward
from trainer_service.training.attention.packing import (
    Row,
)
from trainer_service.training.compute import backward
from trainer_service.training.recipe.leaves import PromptLeaves
from trainer_service.training.spec import Init
from trainer_service.training.trainee import Candidate, Trainee
from trainer_service.training.work import TrainPart


def test_a_training_step_never_waits_for_the_device_before_its_results() -> None:
    base = build()
    rows = [Row((5, 6, 7, 8), (9, 10)), Row((5, 6, 11), (12,)), Row((40, 41, 42, 43, 44, 45, 46), (12, 13, 14))]
    trainees = [_trainee(base, 3), _trainee(base, 6)]
    forward = PackedForward(base)
    backward(base, forward, [TrainPart(trainee, rows) for trainee in trainees], 1 << 20)
    with HostWaits() as waits:
        backward(base, forward, [TrainPart(trainee, rows) for trainee in trainees], 1 << 20)
        for trainee in trainees:
            trainee.clip()
            trainee.update()
    assert not waits.found, waits.found


def _trainee(base: BaseModel, num_virtual_tokens: int) -> Trainee:
    parameters = {"prompt": base.embedding_table[:num_virtual_tokens].detach().clone().requires_grad_(True)}
    return Trainee(Candidate(0.1, Init()), PromptLeaves(parameters), task().spec.hyperparameters)
