"""The leaves that training optimises in place of a prefix: how they start, enter a step, and become a prefix again.

The trainer's only place that knows a kind of prefix. Checkpoints store the leaves by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from shared.model.base_model import BaseModel
from shared.prompt.prefix import Prefix, VirtualTokens
from shared.prompt.soft_prompt import TENSOR_KEY, SoftPrompt
from trainer_service.training.recipe.init import embedding_std, initial_matrix
from trainer_service.training.recipe.reparameterise import PROMPT, effective_matrix, new_parameters
from trainer_service.training.spec import FilledHyperparameters, Init

_BEST = "best"


@dataclass(frozen=True)
class PromptLeaves:
    """The leaves of a soft prompt: its matrix, or the parameters of a reparameterisation; float32."""

    parameters: dict[str, torch.Tensor]

    @property
    def num_virtual_tokens(self) -> int:
        """Positions that the prefix takes in a pass."""
        return int(self.parameters[PROMPT].shape[0])

    def input(self, dtype: torch.dtype) -> VirtualTokens:
        """The prefix as it enters a step, with gradient."""
        return VirtualTokens(effective_matrix(self.parameters).to(dtype))

    def prefix(self) -> Prefix:
        """A copy of the current prefix."""
        return SoftPrompt(effective_matrix(self.parameters).detach().float().cpu().clone())


def new_leaves(
    base_model: BaseModel,
    init: Init,
    hyperparameters: FilledHyperparameters,
    generator: torch.Generator,
    labels: Sequence[str] = (),
    source: Prefix | None = None,
    texts: Iterable[Sequence[int]] = (),
) -> PromptLeaves:
    """The leaves at step 0. Arguments and errors are those of `initial_matrix`."""
    matrix = initial_matrix(base_model, init, hyperparameters.num_virtual_tokens, generator, labels, source, texts)
    method = hyperparameters.reparameterisation
    return PromptLeaves(new_parameters(matrix, method, embedding_std(base_model), generator))


def best_tensors(best: Prefix) -> dict[str, torch.Tensor]:
    """The best prefix so far as tensors of a checkpoint."""
    return {_BEST: best.tensors()[TENSOR_KEY]}


def read_best(tensors: Mapping[str, torch.Tensor]) -> Prefix | None:
    """The best prefix in a checkpoint's tensors; None before the first evaluation."""
    return SoftPrompt(tensors[_BEST].float()) if _BEST in tensors else None
