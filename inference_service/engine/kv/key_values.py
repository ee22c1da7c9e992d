"""Turns prefixes of keys and values into the form of the engine's cache, without a pass of the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inference_service.engine.kv.kv_cache import LayerShape, PrefixKV
from shared.errors import PreconditionFailed
from shared.model.base_model import BaseModel
from shared.prompt.lift import attended, latent_layers
from shared.prompt.prefix import Prefix


class KeyValueReader:
    """Knows the shapes of the cache's layers, and the model's dtype, device and layers with latent attention."""

    def __init__(self, base: BaseModel, shapes: Sequence[LayerShape]) -> None:
        self._id, self._dtype, self._device, self._shapes = base.info.id, base.dtype, base.device, list(shapes)
        self._latent_layers = latent_layers(base.model)

    @torch.inference_mode()
    def read(self, prefix: Prefix) -> PrefixKV:
        """The prefix as the cache stores it: in the model's dtype, layers of one shape together.

        Raises PreconditionFailed for a prefix of other layers, naming the first that differs.
        """
        given = prefix.input(self._dtype, self._device)
        try:
            keys, values = attended(self._latent_layers, given.keys, given.values)
        except (RuntimeError, IndexError) as error:  # latents of another width, or too few layers
            raise PreconditionFailed(f"the prefix has other latents than {self._id}: {str(error)[:200]}") from error
        found = [
            LayerShape(key.shape[1], key.shape[2], value.shape[2]) for key, value in zip(keys, values, strict=True)
        ]
        if len(found) != len(self._shapes):
            raise PreconditionFailed(f"the prefix has {len(found)} layers, {self._id} has {len(self._shapes)}")
        for layer, (theirs, ours) in enumerate(zip(found, self._shapes, strict=True)):
            if theirs != ours:
                raise PreconditionFailed(f"the prefix has {theirs} in layer {layer}; {self._id} has {ours}")
        groups = [[layer for layer, shape in enumerate(found) if shape == one] for one in dict.fromkeys(found)]
        return PrefixKV(
            prefix.num_virtual_tokens,
            *(
                tuple(torch.stack([part[layer] for layer in group]).transpose(1, 2).contiguous() for group in groups)
                for part in (keys, values)
            ),
        )
