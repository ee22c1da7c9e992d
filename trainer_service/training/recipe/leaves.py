"""The leaves that training optimises in place of a prefix: how they start, enter a step, and become a prefix again.

The trainer's only place that knows the kinds of prefixes. Checkpoints store the leaves by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from shared.errors import DamagedBlob, PreconditionFailed
from shared.model.base_model import BaseModel
from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.kinds import KINDS
from shared.prompt.lift import check_heads, key_values_of
from shared.prompt.prefix import Prefix, PrefixInput
from shared.prompt.soft_prompt import TENSOR_KEY, SoftPrompt
from shared.values.enums import PrefixKind
from trainer_service.training.recipe.init import embedding_std, initial_matrix
from trainer_service.training.spec import FilledHyperparameters, Init, Reparameterisation

_BEST = "best"
_FIRST, _OTHERS, _SCALE, _SHAPES = "first", "others", "scale", "shapes"
_LEAST_SCALE = 2.0**-6


PROMPT = "prompt"
BOTTLENECK = 128


def new_parameters(
    matrix: torch.Tensor, method: Reparameterisation, embedding_std: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The trained tensors, float32 leaves; `matrix` is `[num_virtual_tokens, hidden_size]` on the target device.

    RESIDUAL adds a small network to the prompt (Residual Prompt Tuning, Razdaibiedina et al. 2023, arXiv:2305.03937).
    All virtual tokens share it, so they move together early on. Its last matrix is initially zero, so training starts
    from the initial prompt.
    """
    parameters = {PROMPT: matrix.detach().clone().float()}
    if method is Reparameterisation.RESIDUAL:
        hidden = matrix.shape[1]
        down = torch.randn(hidden, BOTTLENECK, generator=generator) * hidden**-0.5
        parameters["down"] = down.to(matrix.device)
        parameters["up"] = torch.zeros(BOTTLENECK, hidden, device=matrix.device)
        parameters["scale"] = torch.full((1,), embedding_std, device=matrix.device)
    return {name: parameter.requires_grad_(name != "scale") for name, parameter in parameters.items()}


def effective_matrix(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    """The soft prompt `[num_virtual_tokens, hidden_size]` computed from the parameters, float32, with gradient."""
    prompt = parameters[PROMPT]
    if "down" not in parameters:
        return prompt
    scale = parameters["scale"]  # the network works on numbers near one, embeddings are much smaller
    return prompt + torch.relu(prompt / scale @ parameters["down"]) @ parameters["up"] * scale


@dataclass
class Leaves(ABC):
    """What one prefix is trained by."""

    kind: ClassVar[PrefixKind]
    marker: ClassVar[str]
    """The parameter that only leaves of this kind have."""
    parameters: dict[str, torch.Tensor]
    """Float32, on the model's device. What requires a gradient is trained."""

    @classmethod
    @abstractmethod
    def new(cls, start: Start) -> Self:
        """The leaves at step 0. Raises PreconditionFailed if they can't start so."""

    @property
    @abstractmethod
    def num_virtual_tokens(self) -> int:
        """Positions of the prefix."""

    @abstractmethod
    def input(self, dtype: torch.dtype) -> PrefixInput:
        """The prefix as it enters a step, with gradient."""

    @abstractmethod
    def prefix(self) -> Prefix:
        """A copy of the current prefix."""


@dataclass(frozen=True)
class Start:
    """What leaves start from. `matrix()`: the initial soft prompt, `[num_virtual_tokens, hidden_size]`."""

    base_model: BaseModel
    hyperparameters: FilledHyperparameters
    generator: torch.Generator
    source: Prefix | None
    matrix: Callable[[], torch.Tensor]


class PromptLeaves(Leaves):
    """The leaves of a soft prompt: its matrix, or the parameters of a reparameterisation."""

    kind, marker = PrefixKind.PROMPT, PROMPT

    @classmethod
    def new(cls, start: Start) -> Self:
        """The leaves that begin as the initial matrix."""
        method, std = start.hyperparameters.reparameterisation, embedding_std(start.base_model)
        return cls(new_parameters(start.matrix(), method, std, start.generator))

    @property
    def num_virtual_tokens(self) -> int:
        """Rows of the matrix."""
        return int(self.parameters[PROMPT].shape[0])

    def input(self, dtype: torch.dtype) -> PrefixInput:
        """The matrix that the parameters make, with gradient."""
        return PrefixInput(effective_matrix(self.parameters).to(dtype))

    def prefix(self) -> SoftPrompt:
        """A copy of the matrix."""
        return SoftPrompt(effective_matrix(self.parameters).detach().float().cpu().clone())


class KeyValueLeaves(Leaves):
    """The leaves of a prefix of keys and values: one row of numbers for each position, layer after layer.

    AdamW moves every number by about the learning rate, but values of the first layer are a hundred times smaller than
    keys. So each layer's keys, and its values, are trained in units of their size at the start: powers of two, which
    lose nothing.

    The first position is not trained: models attend to it from everywhere, whatever it says (attention sinks, Xiao et
    al. 2023, arXiv:2309.17453), and training it is unstable (Cartridges, Eyuboglu et al. 2025, arXiv:2506.06266).
    """

    kind, marker = PrefixKind.PREFIX, _SHAPES

    @classmethod
    def new(cls, start: Start) -> Self:
        """The leaves that begin as the version's to start from, or as the initial matrix, which acts as they do."""
        base_model, source = start.base_model, start.source
        if not isinstance(source, KeyValuePrefix):
            return cls.of(key_values_of(base_model, start.matrix()), base_model.device)
        check_heads(base_model, source)
        if source.num_virtual_tokens != (num_trained := start.hyperparameters.num_virtual_tokens):
            found = f"the version to start from has {source.num_virtual_tokens} positions"
            raise PreconditionFailed(f"{found}; this job trains {num_trained}")
        return cls.of(source, base_model.device)

    @classmethod
    def of(cls, prefix: KeyValuePrefix, device: torch.device) -> Self:
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

    def input(self, dtype: torch.dtype) -> PrefixInput:
        """The keys and values, with gradient for all positions but the first."""
        others = self.parameters[_OTHERS] * self.parameters[_SCALE]
        flat = torch.cat([self.parameters[_FIRST], others]).to(dtype)
        shapes = [[int(size) for size in layer] for layer in self.parameters[_SHAPES].tolist()]
        sizes = [(heads, width) for heads, key, value in shapes for width in (key, value)]
        parts = torch.split(flat, [heads * width for heads, width in sizes], dim=1)
        layers = [part.view(-1, *size) for part, size in zip(parts, sizes, strict=True)]
        return PrefixInput(keys=layers[::2], values=layers[1::2])

    def prefix(self) -> KeyValuePrefix:
        """A copy of the keys and values as bfloat16 numbers, which take half the bytes in a file and in memory."""
        now = self.input(torch.float32).detach()
        keys, values = (tuple(layer.cpu().clone() for layer in part) for part in (now.keys, now.values))
        return KeyValuePrefix(keys, values).rounded()


_LEAVES: dict[PrefixKind, type[Leaves]] = {leaves.kind: leaves for leaves in (PromptLeaves, KeyValueLeaves)}


def new_leaves(
    base_model: BaseModel,
    init: Init,
    hyperparameters: FilledHyperparameters,
    generator: torch.Generator,
    labels: Sequence[str] = (),
    source: Prefix | None = None,
    texts: Iterable[Sequence[int]] = (),
) -> Leaves:
    """The leaves at step 0. Arguments and errors are those of `initial_matrix`."""

    def matrix() -> torch.Tensor:
        num_virtual_tokens = hyperparameters.num_virtual_tokens
        return initial_matrix(base_model, init, num_virtual_tokens, generator, labels, source, texts)

    return _LEAVES[hyperparameters.kind].new(Start(base_model, hyperparameters, generator, source, matrix))


def leaves_of(parameters: dict[str, torch.Tensor]) -> Leaves:
    """The leaves in a checkpoint. Raises DamagedBlob for a kind that this release doesn't know."""
    for leaves in _LEAVES.values():
        if leaves.marker in parameters:
            return leaves(parameters)
    raise DamagedBlob("the checkpoint has parameters of no known kind of prefix")


def best_tensors(best: Prefix) -> dict[str, torch.Tensor]:
    """The best prefix so far as tensors of a checkpoint."""
    tensors = best.tensors()
    return {_BEST if name == TENSOR_KEY else f"{_BEST}.{name}": tensor for name, tensor in tensors.items()}


def read_best(tensors: Mapping[str, torch.Tensor], kind: PrefixKind) -> Prefix | None:
    """The best prefix in a checkpoint's tensors; None before the first evaluation. Raises DamagedBlob."""
    named = {
        TENSOR_KEY if name == _BEST else name.removeprefix(f"{_BEST}."): tensor
        for name, tensor in tensors.items()
        if name.split(".")[0] == _BEST
    }
    return KINDS[kind].from_tensors(named) if named else None


def _size(part: torch.Tensor) -> torch.Tensor:
    """The power of two next to the root mean square of all positions but the first, a scalar."""
    others = part[1:] if len(part) > 1 else part
    size: torch.Tensor = others.double().square().mean().sqrt().clamp(min=_LEAST_SCALE).log2().round().exp2()
    return size.float()
