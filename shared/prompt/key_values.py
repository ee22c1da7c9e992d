"""A prefix of keys and values: each layer's own, after rotary (prefix tuning, Li and Liang 2021, arXiv:2101.00190)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch

from shared.errors import DamagedBlob, PreconditionFailed
from shared.model.base_model import BaseModel
from shared.prompt.digest import MAX_BLOB_BYTES
from shared.prompt.prefix import Prefix, PrefixInput
from shared.values.enums import PrefixKind
from shared.values.hyperparameters import MAX_VIRTUAL_TOKENS

if TYPE_CHECKING:
    from shared.prompt.manifest import Manifest

MAX_HEADS, MAX_WIDTH = 1024, 4096


@dataclass(frozen=True)
class KeyValuePrefix(Prefix):
    """`keys`, `values`: of each layer `[num_virtual_tokens, kv_heads, width]`, float32, at positions 0, 1, 2 ...

    Layers with a sliding window hold all positions. A model with latent attention has its latents, of one head: the
    normed latent as the key, the part with rotary as the value. Immutable; raises DamagedBlob for any other tensors.
    """

    kind: ClassVar[PrefixKind] = PrefixKind.PREFIX
    max_bytes: ClassVar[int] = MAX_BLOB_BYTES
    is_computed: ClassVar[bool] = False
    is_bfloat16_stored: ClassVar[bool] = True
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    def __post_init__(self) -> None:
        if not self.keys or len(self.keys) != len(self.values):
            raise DamagedBlob(f"a prefix has a key and a value in each layer, not {len(self.keys)}, {len(self.values)}")
        for key, value in zip(self.keys, self.values, strict=True):
            for tensor in (key, value):
                _check_shape("a tensor", tuple(tensor.shape), self.keys[0].shape[0])
                if tensor.dtype != torch.float32:
                    raise DamagedBlob(f"prefixes are float32, not {tensor.dtype}")
            if key.shape[1] != value.shape[1]:
                raise DamagedBlob(f"a layer has keys of {key.shape[1]} heads and values of {value.shape[1]}")
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
        num_layers = manifest.base_model.num_layers
        if not 1 <= num_layers == len(shapes) / 2 or list(shapes) != _names(num_layers):
            raise DamagedBlob(
                f"must hold layers.0.key, layers.0.value, layers.1.key ... of {num_layers} layers; holds {len(shapes)} "
                "tensors of these or other names"
            )
        for name, shape in shapes.items():
            _check_shape(name, shape, manifest.num_virtual_tokens)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """The prefix of a file or a checkpoint. Raises DamagedBlob."""
        names = _names(len(tensors) // 2)
        if tensors.keys() != set(names):
            raise DamagedBlob("a prefix has the tensors layers.0.key, layers.0.value, layers.1.key ... and no others")
        return cls(tuple(tensors[name] for name in names[::2]), tuple(tensors[name] for name in names[1::2]))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The keys and values by their names in a file: `layers.0.key`, `layers.0.value`, `layers.1.key` ..."""
        pairs = zip(self.keys, self.values, strict=True)
        return dict(zip(_names(len(self.keys)), [tensor for pair in pairs for tensor in pair], strict=True))

    def rounded(self) -> KeyValuePrefix:
        """The prefix with the nearest bfloat16 numbers, which take half the bytes in a file and in memory."""
        return KeyValuePrefix(
            *(tuple(layer.to(torch.bfloat16).float() for layer in part) for part in (self.keys, self.values))
        )

    def check_fits(self, base: BaseModel) -> None:
        """Raises PreconditionFailed for another number of layers, DamagedBlob if a value overflows the model's dtype.

        The engine compares the shapes with those of its cache.
        """
        if len(self.keys) != base.info.num_layers:
            raise PreconditionFailed(f"the prefix has {len(self.keys)} layers, this model has {base.info.num_layers}")
        most = torch.finfo(base.dtype).max
        if base.dtype != torch.float32 and any(
            np.abs(tensor.numpy()).max() > most for tensor in (*self.keys, *self.values)
        ):
            raise DamagedBlob(f"the prefix overflows {base.dtype}")

    def input(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> PrefixInput:
        """The keys and values in the model's dtype. Raises DamagedBlob if a number overflows it."""
        keys, values = ([layer.to(device, dtype) for layer in part] for part in (self.keys, self.values))
        if not all(bool(torch.isfinite(layer).all()) for layer in (*keys, *values)):
            raise DamagedBlob(f"the prefix overflows {dtype}")
        return PrefixInput(keys=keys, values=values)


def _names(num_layers: int) -> list[str]:
    return [f"layers.{layer}.{part}" for layer in range(num_layers) for part in ("key", "value")]


def _check_shape(name: str, shape: tuple[int, ...], num_positions: int) -> None:
    if len(shape) != 3 or not (1 <= shape[1] <= MAX_HEADS and 1 <= shape[2] <= MAX_WIDTH):
        raise DamagedBlob(
            f"{name} {list(shape)} is not [num_virtual_tokens, kv_heads, width] with 1 to {MAX_HEADS} heads and a "
            f"width of 1 to {MAX_WIDTH}"
        )
    if not 1 <= shape[0] <= MAX_VIRTUAL_TOKENS:
        raise DamagedBlob(f"{name} has {shape[0]} positions; allowed are 1 to {MAX_VIRTUAL_TOKENS}")
    if shape[0] != num_positions:
        raise DamagedBlob(f"{name} has {shape[0]} positions, the manifest or another layer has {num_positions}")
