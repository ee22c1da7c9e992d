"""A prefix: the positions that a version puts before every input, which yield keys and values in each layer.

In a causal model these keys and values depend on the prefix alone. A soft prompt (`soft_prompt`) is one kind of prefix;
`kinds` lists all of them. Store, registry, engine, trainer and imports handle any kind through `Prefix`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from shared.model.base_model import BaseModel
from shared.values.enums import PrefixKind

if TYPE_CHECKING:
    from shared.prompt.manifest import Manifest


@dataclass(frozen=True)
class PrefixInput:
    """A prefix as it enters a model: keys and values, if it has some, and after them embeddings, if it has some.

    The model computes the keys and values of the embeddings only. All tensors are in its dtype and on its device.
    """

    embeddings: torch.Tensor | None = None
    """`[virtual tokens, hidden_size]`"""
    keys: Sequence[torch.Tensor] = ()
    """Of each layer `[positions, kv_heads, width]`, as the model's cache has them."""
    values: Sequence[torch.Tensor] = ()
    num_hidden: int = 0
    """Positions of the keys and values that were left out: the inputs' position numbers go on as if they were there."""

    @property
    def num_embedded(self) -> int:
        """Rows of the embeddings."""
        return 0 if self.embeddings is None else int(self.embeddings.shape[0])

    @property
    def num_given(self) -> int:
        """Positions of each layer's keys and values."""
        return int(self.keys[0].shape[0]) if self.keys else 0

    @property
    def num_virtual_tokens(self) -> int:
        """All positions."""
        return self.num_given + self.num_embedded

    def detach(self) -> PrefixInput:
        """The same numbers without gradient."""
        keys, values = ([layer.detach() for layer in part] for part in (self.keys, self.values))
        return PrefixInput(None if self.embeddings is None else self.embeddings.detach(), keys, values, self.num_hidden)

    def without(self, positions: Collection[int]) -> PrefixInput:
        """What an input reads that must not attend to some positions of the keys and values, with gradient.

        A layer's window then counts the positions that are left.
        """
        left_out = set(positions)
        kept = [position for position in range(self.num_given) if position not in left_out]
        index = torch.tensor(kept, device=self.keys[0].device)
        keys, values = ([layer[index] for layer in part] for part in (self.keys, self.values))
        return PrefixInput(self.embeddings, keys, values, self.num_hidden + self.num_given - len(kept))


class Prefix(ABC):
    """What one version puts before every input. Immutable; its tensors are float32, on the CPU and finite."""

    kind: ClassVar[PrefixKind]
    max_bytes: ClassVar[int] = 64 << 20
    """Size limit of a version's file."""
    is_computed: ClassVar[bool] = True
    """Whether a model computes its keys and values from embeddings; False: `input` has them."""
    is_bfloat16_stored: ClassVar[bool] = False
    """Whether a file holds bfloat16 if that loses nothing, instead of float32."""

    @property
    @abstractmethod
    def num_virtual_tokens(self) -> int:
        """Positions that the prefix takes, at least 1."""

    @classmethod
    @abstractmethod
    def check_shapes(cls, shapes: Mapping[str, tuple[int, ...]], manifest: Manifest) -> None:
        """Check the tensors that a file announces, before memory is allocated for them.

        Raises DamagedBlob for tensors that this kind doesn't have, sizes out of range, or sizes unlike the manifest's.
        """

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """The inverse of `tensors`. Raises DamagedBlob for numbers that are not finite."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by their names in a version's file, in the order in which they are written."""

    @abstractmethod
    def check_fits(self, base: BaseModel) -> None:
        """Check that the prefix can be used with this model.

        Raises PreconditionFailed if it is for a model of another shape, DamagedBlob if a number overflows the dtype.
        """

    @abstractmethod
    def input(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> PrefixInput:
        """The prefix as it enters a model. Raises DamagedBlob if a number overflows `dtype`."""

    def equals(self, other: Prefix) -> bool:
        """Whether both are of one kind with the same numbers."""
        ours, theirs = self.tensors(), other.tensors()
        return ours.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in ours.items())
