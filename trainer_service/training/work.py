"""What a run asks its cohort to compute next, and what it gets back. The cohort puts the work of many runs into one
pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from trainer_service.training.attention.packing import Row
from trainer_service.training.trainee import Trainee


@dataclass(frozen=True)
class TrainPart:
    """One trainee's batch of one step."""

    trainee: Trainee
    rows: Sequence[Row]
    label_smoothing: float = 0.0
    total: float | None = None
    """What the rows' weights are divided by; None: their sum over the part's target tokens."""


@dataclass(frozen=True)
class TrainWork:
    """An optimizer step of every trainee of a run, or a piece of one. Result: a list of StepOutcome, of these rows."""

    parts: Sequence[TrainPart]
    is_last: bool = True
    """The trainees are updated. Otherwise they keep the gradients for the last piece of the step."""


@dataclass(frozen=True)
class StepOutcome:
    loss: float
    grad_norm: float
    learning_rate: float
    num_tokens: int
    step_seconds: float

    @property
    def is_finite(self) -> bool:
        """Whether the step was taken; otherwise it was skipped."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def plus(self, next_piece: StepOutcome) -> StepOutcome:
        """Of this piece of a step and the next one; what is known at a step's end comes from that."""
        return replace(
            next_piece,
            loss=self.loss + next_piece.loss,
            num_tokens=self.num_tokens + next_piece.num_tokens,
            step_seconds=self.step_seconds + next_piece.step_seconds,
        )


@dataclass(frozen=True)
class ScoreWork:
    """Log-probabilities of rows' targets behind `prompt`, without gradient. Result: a list of RowScore."""

    prompt: torch.Tensor | None
    rows: Sequence[Row]
    candidates: tuple[int, ...] = ()
    """Token ids whose log-probability at the first target position is wanted."""


@dataclass(frozen=True)
class RowScore:
    """Natural logarithms. `candidates` are for the first target position."""

    log_probability: float
    num_targets: int
    num_correct: int
    candidates: tuple[float, ...] = ()


@dataclass(frozen=True)
class CallWork:
    """Something that no pass can be shared with (tokenizing, generating a few answers). Result: what `call` returns."""

    call: Callable[[], Any]
    num_tokens: int = 0
    """What it costs, in positions, for the fair share."""


Work = TrainWork | ScoreWork | CallWork
