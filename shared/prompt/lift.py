"""Keys and values between a prefix and a model's own code: computed from embeddings, and expanded for its attention.

The keys and values of embeddings act on every input as the embeddings themselves do, because in a causal model they
depend on nothing after them. So a text, a document or a soft prompt can be *lifted* to a prefix of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from shared.errors import PreconditionFailed
from shared.model.base_model import BaseModel
from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.prefix import Prefix

Expand = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def key_values_of(base: BaseModel, inputs_embeds: torch.Tensor) -> KeyValuePrefix:
    """The prefix that acts as `inputs_embeds` `[tokens, hidden_size]` does, by one pass of the model's own code.

    Computed in the model's dtype. Layers with a sliding window hold all positions, too. A model with latent attention
    (DeepSeek-V2, arXiv:2405.04434) keeps its latents, of one head. Raises PreconditionFailed for a model that does not
    keep keys and values of every token in every layer, DamagedBlob if they are not finite.
    """
    model: Any = base.model
    cache = DynamicCache()  # without the model's configuration it keeps what a layer's window hides later, too
    embedded = inputs_embeds.detach().to(base.device, base.dtype)[None]
    try:
        model(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
    # models with a cache of another kind raise any of these
    except (ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
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


def check_heads(base: BaseModel, prefix: Prefix) -> None:
    """Raises PreconditionFailed if the keys and values are for layers with other heads than the model's."""
    if not isinstance(prefix, KeyValuePrefix):
        return
    prefix.check_fits(base)
    ours = key_values_of(base, base.embedding_table[:1])
    layers = zip(prefix.keys, prefix.values, ours.keys, ours.values, strict=True)
    for index, tensors in enumerate(layers):
        key, value, our_key, our_value = (list(tensor.shape[1:]) for tensor in tensors)
        if (key, value) != (our_key, our_value):
            reason = f"layer {index} has keys and values {key} and {value}, this model's are {our_key} and {our_value}"
            raise PreconditionFailed(f"the prefix does not fit {base.info.id}: {reason}")


def latent_layers(model: torch.nn.Module) -> dict[int, Expand]:
    """The layers with latent attention, by index: each function makes keys and values of the latents, with gradient.

    It takes and gives what the layer's own cache and its attention function have, `[rows, heads, tokens, width]`; the
    latents may be on another device than the layer.
    """

    def expand(layer: Any) -> Expand:
        device = next(layer.parameters()).device
        return lambda keys, values: layer.expand_kv(keys.to(device), values.to(device))

    return {
        module.layer_idx: expand(module)  # type: ignore[misc]
        for module in model.modules()
        if hasattr(module, "expand_kv") and isinstance(getattr(module, "layer_idx", None), int)
    }


def attended(
    layers: dict[int, Expand], keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the attention of each layer reads, `[tokens, heads, width]`: latents are expanded by `layers`.

    `keys` and `values` are those of a `KeyValuePrefix`, in the model's dtype and on its first device.
    """
    found_keys, found_values = list(keys), list(values)
    for layer, expand in layers.items():
        latents = (part[layer].transpose(0, 1)[None] for part in (keys, values))
        key, value = expand(*latents)
        found_keys[layer], found_values[layer] = key[0].transpose(0, 1), value[0].transpose(0, 1)
    return found_keys, found_values


def _refusal(base: BaseModel) -> str:
    return (
        f"{base.info.id} does not keep keys and values of every token in each of its {base.info.num_layers} layers, "
        "so a version of it can't be a prefix of keys and values; train a soft prompt"
    )
