"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), learning-rate schedules and gradient clipping of one prompt.

A prompt is small, so its optimizer is plain tensor arithmetic. Its state is two tensors per parameter, which
checkpoints contain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from trainer_service.training.spec import FilledHyperparameters, LearningRateSchedule

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


def learning_rate_at(step: int, peak: float, hyperparameters: FilledHyperparameters) -> float:
    """The learning rate of step 0, 1, 2 ...: a linear warm-up to `peak`, then the schedule until the last step."""
    warmup = hyperparameters.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, hyperparameters.num_steps - warmup))
    if hyperparameters.schedule is LearningRateSchedule.COSINE:
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (1 - progress) if hyperparameters.schedule is LearningRateSchedule.LINEAR else peak


@dataclass
class AdamW:
    """State of one prompt's optimizer. `parameters` are float32 leaves; `first` and `second` their moments."""

    parameters: dict[str, torch.Tensor]
    weight_decay: float
    num_updates: int = 0
    first: dict[str, torch.Tensor] = field(default_factory=dict)
    second: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, parameter in self.parameters.items():
            self.first.setdefault(name, torch.zeros_like(parameter, requires_grad=False))
            self.second.setdefault(name, torch.zeros_like(parameter, requires_grad=False))

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scale all gradients down to a common norm of `max_norm` (0: don't). Returns the original norm, a scalar."""
        return torch.nn.utils.clip_grad_norm_(self.parameters.values(), max_norm or math.inf)

    @torch.no_grad()
    def update(self, learning_rate: float) -> None:
        """Update the parameters and clear their gradients."""
        self.num_updates += 1
        correction1, correction2 = 1 - _BETA1**self.num_updates, 1 - _BETA2**self.num_updates
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            first, second = self.first[name], self.second[name]
            first.lerp_(gradient, 1 - _BETA1)
            second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
            if self.weight_decay:
                parameter.mul_(1 - learning_rate * self.weight_decay)
            parameter.addcdiv_(
                first, second.div(correction2).sqrt_().add_(_EPSILON), value=-learning_rate / correction1
            )
            parameter.grad = None
