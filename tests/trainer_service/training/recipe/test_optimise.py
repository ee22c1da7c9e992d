"""Learning rate schedules, and AdamW compared with PyTorch's."""

from __future__ import annotations

import pytest
import torch

from tests.trainer_service.training.tasks import task
from trainer_service.training.recipe.optimise import AdamW, learning_rate_at
from trainer_service.training.spec import LearningRateSchedule


@pytest.mark.parametrize("schedule", LearningRateSchedule)
def test_a_schedule_warms_up_to_its_peak_and_never_exceeds_it(schedule: LearningRateSchedule) -> None:
    hyperparameters = task(num_steps=100, warmup_steps=10, schedule=schedule).spec.hyperparameters
    rates = [learning_rate_at(step, 0.5, hyperparameters) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.5 if schedule is LearningRateSchedule.CONSTANT else 0.0, abs=1e-12)


def test_adamw_with_clipping_equals_torch() -> None:
    start = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    ours, theirs = start.clone().requires_grad_(True), start.clone().requires_grad_(True)
    optimizer, reference = AdamW({"prompt": ours}, 0.1), torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.1)
    for step in range(12):
        gradient = torch.randn(5, 7, generator=torch.Generator().manual_seed(step + 1)) * (step + 0.1)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        norm = optimizer.clip(1.0)
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_([theirs], 1.0))
        optimizer.update(0.02)
        reference.step()
    torch.testing.assert_close(ours, theirs)
