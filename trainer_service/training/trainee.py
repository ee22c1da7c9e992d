"""One prefix in training: its leaves, optimizer and step. A job has one; a search begins with several."""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from shared.errors import SoftPromptError
from shared.prompt.prefix import PrefixInput
from trainer_service.training.attention.packing import Row, Segment
from trainer_service.training.data.encoding import RowTokens
from trainer_service.training.recipe.leaves import Leaves
from trainer_service.training.recipe.optimise import AdamW, learning_rate_at
from trainer_service.training.spec import FilledHyperparameters, Init

MAX_EXCESS_SKIPS = 10
"""A prompt fails once the excess of skipped steps over taken steps reaches this number. A batch that overflows costs a
step or two; a prompt that has diverged, or data that the model can't compute, never gives a finite gradient again.
Counting the excess, rather than steps in a row, also ends a training that skips more steps than it takes.
"""


class NonFinite(SoftPromptError):
    """Losses or gradients are repeatedly NaN or infinite, so training can't continue."""


@dataclass(frozen=True)
class Candidate:
    """What distinguishes the trainees of one job."""

    learning_rate: float
    init: Init


class Trainee:
    """A prefix's leaves, optimizer, gradients and counters."""

    def __init__(
        self,
        candidate: Candidate,
        leaves: Leaves,
        hyperparameters: FilledHyperparameters,
        index: int = 0,
        hidden: Mapping[RowTokens, tuple[int, ...]] | None = None,
    ) -> None:
        """`index`: the candidate's index in the job. `hidden`: positions of the prefix that rows with these tokens must
        not attend to.
        """
        self.candidate, self.index, self._hidden = candidate, index, hidden or {}
        self.step = 0
        self.num_skipped = 0
        """Steps without an update because the gradient was not finite."""
        self.excess_skips = 0
        """Skipped steps minus the steps taken since; never below 0."""
        self._hyperparameters = hyperparameters
        self.leaves, self.parameters = leaves, leaves.parameters
        trained = {name: parameter for name, parameter in self.parameters.items() if parameter.requires_grad}
        self.optimizer = AdamW(trained, hyperparameters.weight_decay)
        self._kept_gradients: dict[str, torch.Tensor] = {}

    @property
    def num_virtual_tokens(self) -> int:
        """Positions of its prefix."""
        return self.leaves.num_virtual_tokens

    @property
    def learning_rate(self) -> float:
        """The learning rate of the current step."""
        return learning_rate_at(self.step, self.candidate.learning_rate, self._hyperparameters)

    def input(self, dtype: torch.dtype) -> PrefixInput:
        """The current prefix as it enters a step, with gradient."""
        return self.leaves.input(dtype)

    def segments(self, prefix: PrefixInput, rows: Sequence[Row]) -> list[Segment]:
        """The rows after `prefix`, in one segment; before them, those that don't attend to all of it."""
        hidden = [(row, self._hidden.get((row.input_ids, row.target_ids))) for row in rows]
        found = [Segment(prefix.without(positions), [row]) for row, positions in hidden if positions is not None]
        others = [row for row, positions in hidden if positions is None]
        return [*found, Segment(prefix, others)] if others else found

    def clip(self) -> torch.Tensor:
        """Clip the gradients; returns their norm before, a scalar."""
        return self.optimizer.clip(self._hyperparameters.max_grad_norm)

    def update(self) -> None:
        """End a step by updating the parameters."""
        self.optimizer.update(self.learning_rate)
        self._kept_gradients = {}
        self.step += 1
        self.excess_skips = max(0, self.excess_skips - 1)

    def skip(self) -> None:
        """End a step whose gradient is not finite. Parameters and moments stay unchanged."""
        self.discard_gradients()
        self._kept_gradients = {}
        self.step += 1
        self.num_skipped += 1
        self.excess_skips += 1

    @property
    def is_lost(self) -> bool:
        """Whether the prompt skipped too many steps."""
        return self.excess_skips >= MAX_EXCESS_SKIPS

    def discard_gradients(self) -> None:
        """Discard the current gradients, but not the kept ones, so a piece of a step can be recomputed."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def keep_gradients(self) -> None:
        """Keep the gradients of a piece of a step until the step's last piece."""
        self.add_kept_gradients()
        self._kept_gradients = {
            name: parameter.grad for name, parameter in self.parameters.items() if parameter.grad is not None
        }
        self.discard_gradients()

    def add_kept_gradients(self) -> None:
        """Add the gradients of the earlier pieces of this step."""
        for name, gradient in self._kept_gradients.items():
            found = self.parameters[name].grad
            self.parameters[name].grad = gradient.clone() if found is None else found + gradient


def batch_indices(seed: int, step: int, num_examples: int, batch_size: int) -> list[int]:
    """The examples of step 0, 1, 2 ...: shuffled epochs in a row, as a pure function of the arguments.

    There is no data cursor or random state to restore: a run resumed at a step reads the same batches.
    """
    first = step * batch_size
    return [
        _epoch_order(seed, position // num_examples, num_examples)[position % num_examples]
        for position in range(first, first + batch_size)
    ]


@lru_cache(maxsize=64)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> array[int]:
    order = array("i", range(num_examples))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order
