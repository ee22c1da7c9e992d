"""The leaves that training optimises in place of a prefix: how they start, enter a step, and become a prefix again.

The trainer's only place that knows the kinds of prefixes. Checkpoints store the leaves by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from shared.errors import PreconditionFailed
from shared.model.base_model import BaseModel
from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.lift import key_values_of
from shared.prompt.prefix import Entering, Prefix, PrefixKind, VirtualKeyValues, VirtualTokens
from shared.prompt.soft_prompt import TENSOR_KEY, SoftPrompt
from trainer_service.training.recipe.init import embedding_std, initial_matrix
from trainer_service.training.recipe.reparameterise import PROMPT, effective_matrix, new_parameters
from trainer_service.training.spec import FilledHyperparameters, Init

_BEST = "best"
_FIRST, _OTHERS, _SCALE, _SHAPES = "first", "others", "scale", "shapes"
_LEAST_SCALE = 2.0**-6


class Leaves(Protocol):
    """What one prefix is trained by."""

    parameters: dict[str, torch.Tensor]
    """Float32, on the model's device. What requires a gradient is trained."""

    @property
    def num_virtual_tokens(self) -> int:
        """Positions of the prefix."""
        ...

    def input(self, dtype: torch.dtype) -> Entering:
        """The prefix as it enters a step, with gradient."""
        ...

    def prefix(self) -> Prefix:
        """A copy of the current prefix."""
        ...


@dataclass
class PromptLeaves:
    """The leaves of a soft prompt: its matrix, or the parameters of a reparameterisation."""

    parameters: dict[str, torch.Tensor]

    @property
    def num_virtual_tokens(self) -> int:
        """Rows of the matrix."""
        return int(self.parameters[PROMPT].shape[0])

    def input(self, dtype: torch.dtype) -> VirtualTokens:
        """The matrix that the parameters make, with gradient."""
        return VirtualTokens(effective_matrix(self.parameters).to(dtype))

    def prefix(self) -> SoftPrompt:
        """A copy of the matrix."""
        return SoftPrompt(effective_matrix(self.parameters).detach().float().cpu().clone())


@dataclass
class KeyValueLeaves:
    """The leaves of a prefix of keys and values: one row of numbers for each position, layer after layer.

    AdamW moves every number by about the learning rate, but values of the first layer are a hundred times smaller than
    keys. So each layer's keys, and its values, are trained in units of their size at the start: powers of two, which
    lose nothing.

    The first position is not trained: models attend to it from everywhere, whatever it says (attention sinks, Xiao et
    al. 2023, arXiv:2309.17453), and training it is unstable (Cartridges, Eyuboglu et al. 2025, arXiv:2506.06266).
    """

    parameters: dict[str, torch.Tensor]

    @classmethod
    def of(cls, prefix: KeyValuePrefix, device: torch.device) -> KeyValueLeaves:
        """The leaves that begin as `prefix`."""
        pairs = list(zip(prefix.keys, prefix.values, strict=True))
        flat = torch.cat([part.flatten(1) for pair in pairs for part in pair], dim=1).to(device, copy=True)
        shapes = [[key.shape[1], key.shape[2], value.shape[2]] for key, value in pairs]
        scale = torch.cat([_size(part).expand(part[0].numel()) for pair in pairs for part in pair])[None].to(device)
        return cls(
            {
                _OTHERS: (flat[1:] / scale).requires_grad_(True),
                _FIRST: flat[:1].clone(),
                _SCALE: scale,
                _SHAPES: torch.tensor(shapes, dtype=torch.float32),  # heads, key width, value width of each layer
            }
        )

    @property
    def num_virtual_tokens(self) -> int:
        """Positions, with the first."""
        return 1 + int(self.parameters[_OTHERS].shape[0])

    def input(self, dtype: torch.dtype) -> VirtualKeyValues:
        """The keys and values, with gradient for all positions but the first."""
        others = self.parameters[_OTHERS] * self.parameters[_SCALE]
        flat = torch.cat([self.parameters[_FIRST], others]).to(dtype)
        shapes = [[int(size) for size in layer] for layer in self.parameters[_SHAPES].tolist()]
        sizes = [(heads, width) for heads, key, value in shapes for width in (key, value)]
        parts = torch.split(flat, [heads * width for heads, width in sizes], dim=1)
        layers = [part.view(-1, *size) for part, size in zip(parts, sizes, strict=True)]
        return VirtualKeyValues(layers[::2], layers[1::2])

    def prefix(self) -> KeyValuePrefix:
        """A copy of the keys and values as bfloat16 numbers, which take half the bytes in a file and in memory."""
        now = self.input(torch.float32).detach()
        keys, values = (tuple(layer.cpu().clone() for layer in part) for part in (now.keys, now.values))
        return KeyValuePrefix(keys, values).rounded()


def new_leaves(
    base_model: BaseModel,
    init: Init,
    hyperparameters: FilledHyperparameters,
    generator: torch.Generator,
    labels: Sequence[str] = (),
    source: Prefix | None = None,
    texts: Iterable[Sequence[int]] = (),
) -> Leaves:
    """The leaves at step 0. Arguments and errors are those of `initial_matrix`.

    Keys and values begin as those of the initial soft prompt, which act as it does, or as the version's to start from.
    """
    if hyperparameters.kind is PrefixKind.PREFIX and isinstance(source, KeyValuePrefix):
        _check_length(source, hyperparameters.num_virtual_tokens)
        return KeyValueLeaves.of(source, base_model.device)
    matrix = initial_matrix(base_model, init, hyperparameters.num_virtual_tokens, generator, labels, source, texts)
    if hyperparameters.kind is PrefixKind.PREFIX:
        return KeyValueLeaves.of(key_values_of(base_model, matrix), base_model.device)
    method = hyperparameters.reparameterisation
    return PromptLeaves(new_parameters(matrix, method, embedding_std(base_model), generator))


def leaves_of(parameters: dict[str, torch.Tensor]) -> Leaves:
    """The leaves in a checkpoint."""
    return KeyValueLeaves(parameters) if _SHAPES in parameters else PromptLeaves(parameters)


def best_tensors(best: Prefix) -> dict[str, torch.Tensor]:
    """The best prefix so far as tensors of a checkpoint."""
    tensors = best.tensors()
    return {_BEST if name == TENSOR_KEY else f"{_BEST}.{name}": tensor for name, tensor in tensors.items()}


def read_best(tensors: Mapping[str, torch.Tensor]) -> Prefix | None:
    """The best prefix in a checkpoint's tensors; None before the first evaluation."""
    if _BEST in tensors:
        return SoftPrompt(tensors[_BEST].float())
    keys, values = (
        [tensors[name] for name in sorted(_named(tensors, part), key=lambda name: int(name.split(".")[2]))]
        for part in ("key", "value")
    )
    return KeyValuePrefix(tuple(keys), tuple(values)) if keys else None


def _named(tensors: Mapping[str, torch.Tensor], part: str) -> list[str]:
    return [name for name in tensors if name.startswith(f"{_BEST}.layers.") and name.endswith(part)]


def _size(part: torch.Tensor) -> torch.Tensor:
    """The power of two next to the root mean square of all positions but the first, a scalar."""
    others = part[1:] if len(part) > 1 else part
    size: torch.Tensor = others.double().square().mean().sqrt().clamp(min=_LEAST_SCALE).log2().round().exp2()
    return size.float()


def _check_length(source: KeyValuePrefix, num_virtual_tokens: int) -> None:
    if source.num_virtual_tokens != num_virtual_tokens:
        raise PreconditionFailed(
            f"the version to start from has {source.num_virtual_tokens} positions; this job trains {num_virtual_tokens}"
        )
