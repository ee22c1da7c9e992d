"""The work that a run gives to its cohort, and the results. The cohort computes the work of many runs in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared.prompt.prefix import PrefixInput
from trainer_service.training.attention.packing import Row
from trainer_service.training.teacher_targets import TeacherTargets
from trainer_service.training.trainee import Trainee


@dataclass(frozen=True)
class TrainPart:
    """The rows of one trainee in one step, or in a piece of it."""

    trainee: Trainee
    rows: Sequence[Row]
    label_smoothing: float = 0.0
    total: float | None = None
    """The divisor of the rows' weights; None: their sum over the part's target tokens."""


@dataclass(frozen=True)
class TrainWork:
    """An optimizer step, or a piece of one, for every trainee of a run. Result: a list with a StepOutcome per part."""

    parts: Sequence[TrainPart]
    is_last: bool = True
    """True: the trainees are updated. False: they keep the gradients for the last piece of the step."""


@dataclass(frozen=True)
class StepOutcome:
    """The result of one trainee's step, or of a piece of it."""

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
        """Combine this piece of a step with the next one. The norm and learning rate are those of the next one."""
        return replace(
            next_piece,
            loss=self.loss + next_piece.loss,
            num_tokens=self.num_tokens + next_piece.num_tokens,
            step_seconds=self.step_seconds + next_piece.step_seconds,
        )


@dataclass(frozen=True)
class ScoreWork:
    """Log-probabilities of the rows' targets after `prefix`, without gradient. Result: a list of RowScore."""

    prefix: PrefixInput | None
    rows: Sequence[Row]
    candidates: tuple[int, ...] = ()
    """Token ids to score at the first target position."""
    keep_top: bool = False
    """Whether each RowScore has the most probable tokens at its targets."""

    @property
    def num_virtual_tokens(self) -> int:
        """Positions of the prefix; 0 without one."""
        return 0 if self.prefix is None else self.prefix.num_virtual_tokens


@dataclass(frozen=True)
class RowScore:
    """A row's score, in natural logarithms. `candidates` are for the first target position.

    For a row with a teacher, `log_probability` is the divergence from it, negated.
    """

    log_probability: float
    num_targets: int
    num_correct: int
    candidates: tuple[float, ...] = ()
    top: TeacherTargets | None = None


@dataclass(frozen=True)
class CallWork:
    """Work that can't share a pass (tokenizing, generating a few answers). Result: the value that `call` returns."""

    call: Callable[[], Any]
    num_tokens: int = 0
    """Its cost for the fair share, in positions."""


Work = TrainWork | ScoreWork | CallWork
