"""A prefix: the positions that a version puts before every input, which yield keys and values in each layer.

In a causal model these keys and values depend on the prefix alone. A soft prompt (`soft_prompt`) is one kind of prefix;
`kinds` lists all of them. Store, registry, engine, trainer and imports handle any kind through `Prefix`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from shared.model.base_model import BaseModel
from shared.values.enums import PrefixKind as PrefixKind

if TYPE_CHECKING:
    from shared.prompt.manifest import Manifest


@dataclass(frozen=True)
class VirtualTokens:
    """A prefix as it enters a model: embeddings from which the model computes the keys and values.

    `embeddings`: `[num_virtual_tokens, hidden_size]` in the model's dtype and on its device.
    """

    embeddings: torch.Tensor

    @property
    def num_virtual_tokens(self) -> int:
        """Rows of the embeddings."""
        return int(self.embeddings.shape[0])

    def detach(self) -> VirtualTokens:
        """The same numbers without gradient."""
        return VirtualTokens(self.embeddings.detach())


@dataclass(frozen=True)
class VirtualKeyValues:
    """A prefix as it enters a model that need not compute it: keys and values as the model's cache has them.

    `keys`, `values`: of each layer `[num_virtual_tokens, kv_heads, width]` in the model's dtype and on its device.
    """

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]

    @property
    def num_virtual_tokens(self) -> int:
        """Positions of each layer's keys and values."""
        return int(self.keys[0].shape[0])

    def detach(self) -> VirtualKeyValues:
        """The same numbers without gradient."""
        return VirtualKeyValues(*([layer.detach() for layer in part] for part in (self.keys, self.values)))


Entering = VirtualTokens | VirtualKeyValues


class Prefix(ABC):
    """What one version puts before every input. Immutable; its tensors are float32, on the CPU and finite."""

    kind: ClassVar[PrefixKind]
    max_bytes: ClassVar[int] = 64 << 20
    """Size limit of a version's file."""
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
    def input(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Entering:
        """The prefix as it enters a model. Raises DamagedBlob if a number overflows `dtype`."""

    def equals(self, other: Prefix) -> bool:
        """Whether both are of one kind with the same numbers."""
        ours, theirs = self.tensors(), other.tensors()
        return ours.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in ours.items())
