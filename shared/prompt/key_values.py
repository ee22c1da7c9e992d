"""A prefix of keys and values: each layer's own, after rotary (prefix tuning, Li and Liang 2021, arXiv:2101.00190)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch

from shared.errors import DamagedBlob, PreconditionFailed
from shared.model.base_model import BaseModel
from shared.prompt.prefix import Prefix, PrefixKind, VirtualTokens
from shared.values.hyperparameters import MAX_VIRTUAL_TOKENS

if TYPE_CHECKING:
    from shared.prompt.manifest import Manifest

MAX_HEADS, MAX_WIDTH = 1024, 4096


@dataclass(frozen=True)
class KeyValuePrefix(Prefix):
    """`keys`, `values`: of each layer `[num_virtual_tokens, kv_heads, width]`, float32, at positions 0, 1, 2 ..."""

    kind: ClassVar[PrefixKind] = PrefixKind.PREFIX
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    def __post_init__(self) -> None:
        # NumPy, as in SoftPrompt: it doesn't wake torch's threads beside a busy model.
        if not all(np.isfinite(tensor.numpy()).all() for tensor in (*self.keys, *self.values)):
            raise DamagedBlob("the prefix has values that are not finite")

    @property
    def num_virtual_tokens(self) -> int:
        """Positions of each layer's keys and values."""
        return int(self.keys[0].shape[0])

    @classmethod
    def check_shapes(cls, shapes: Mapping[str, tuple[int, ...]], manifest: Manifest) -> None:
        """Keys, then values, of each layer of the manifest's base model. Raises DamagedBlob."""
        if list(shapes) != _names(manifest.base_model.num_layers):
            raise DamagedBlob(f"must hold keys and values of {manifest.base_model.num_layers} layers")
        for name, shape in shapes.items():
            if len(shape) != 3 or not (1 <= shape[1] <= MAX_HEADS and 1 <= shape[2] <= MAX_WIDTH):
                raise DamagedBlob(
                    f"{name} {list(shape)} is not [num_virtual_tokens, kv_heads, width] within the limits"
                )
            if not 1 <= shape[0] == manifest.num_virtual_tokens <= MAX_VIRTUAL_TOKENS:
                raise DamagedBlob(f"{name} has {shape[0]} positions, the manifest says {manifest.num_virtual_tokens}")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """The prefix of a file, whose tensors are in the order of `tensors`. Raises DamagedBlob."""
        every = list(tensors.values())
        return cls(tuple(every[::2]), tuple(every[1::2]))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The keys and values by their names in a file: `layers.0.key`, `layers.0.value`, `layers.1.key` ..."""
        pairs = zip(self.keys, self.values, strict=True)
        return dict(zip(_names(len(self.keys)), [tensor for pair in pairs for tensor in pair], strict=True))

    def check_fits(self, base: BaseModel) -> None:
        """Raises PreconditionFailed for another number of layers, DamagedBlob if a value overflows the model's dtype.

        The engine compares the shapes with those of its cache.
        """
        if len(self.keys) != base.info.num_layers:
            raise PreconditionFailed(f"the prefix has {len(self.keys)} layers, this model has {base.info.num_layers}")
        for tensor in (*self.keys, *self.values):
            if not bool(torch.isfinite(tensor.to(base.dtype)).all()):
                raise DamagedBlob(f"the prefix overflows {base.dtype}")

    def input(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> VirtualTokens:
        """Raises PreconditionFailed: the prefix enters a model by its cache, not as embeddings."""
        raise PreconditionFailed("a prefix of keys and values has no virtual tokens: this trainer can't use it yet")


def _names(num_layers: int) -> list[str]:
    return [f"layers.{layer}.{part}" for layer in range(num_layers) for part in ("key", "value")]
