"""The keys and values that a model computes for some embeddings: a text's, a document's, or a soft prompt's ("lifted").

They act on every input as the embeddings themselves do, because in a causal model they depend on nothing after them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from shared.errors import PreconditionFailed
from shared.model.base_model import BaseModel
from shared.prompt.key_values import KeyValuePrefix


@torch.no_grad()
def key_values_of(base: BaseModel, inputs_embeds: torch.Tensor) -> KeyValuePrefix:
    """The prefix that acts as `inputs_embeds` `[tokens, hidden_size]` does, by one pass of the model's own code.

    Computed in the model's dtype. Raises PreconditionFailed for a model that does not keep keys and values of every
    token in every layer, DamagedBlob if they are not finite.
    """
    model: Any = base.model
    cache = DynamicCache()  # without the model's configuration it keeps what a layer's window hides later, too
    embedded = inputs_embeds.detach().to(base.device, base.dtype)[None]
    try:
        model(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
    except (ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:  # needs its own cache
        raise PreconditionFailed(f"{_refusal(base)}: {str(error)[:200]}") from error
    layers = [layer for layer in cache.layers if getattr(layer, "is_initialized", False)]
    shapes = [tuple(layer.keys.shape) for layer in layers]
    if len(layers) != base.info.num_layers or any(len(shape) != 4 or shape[2] != embedded.shape[1] for shape in shapes):
        raise PreconditionFailed(_refusal(base))
    keys, values = (
        tuple(tensor[0].transpose(0, 1).float().cpu().contiguous() for tensor in tensors)
        for tensors in ([layer.keys for layer in layers], [layer.values for layer in layers])
    )
    return KeyValuePrefix(keys, values)


def _refusal(base: BaseModel) -> str:
    return (
        f"{base.info.id} does not keep keys and values of every token in each of its {base.info.num_layers} layers, "
        "so a version of it can't be a prefix of keys and values; train a soft prompt"
    )
