"""Finds the cache layout that a model's attention layers need, by observing one tiny forward pass.

Works for any architecture: transformers calls a registered attention function with the layer, its keys and its values.
An architecture that calls it in some layers only, or needs a mask that the arguments don't describe, is refused with an
error instead of served incorrectly.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import torch

from inference_service.engine.kv.kv_cache import LayerShape
from shared.errors import PreconditionFailed

_names = count()


def register_attention(function: Any) -> str:
    """Register an attention function with transformers under a unique name, and return the name.

    Engines therefore don't share state. No mask function is registered under the name, so models build no masks.
    """
    from transformers import AttentionInterface

    name = f"softprompt-{next(_names)}"
    AttentionInterface.register(name, function)
    return name


def layer_shapes(model: Any) -> list[LayerShape]:
    """The cache shape of each layer, in order; empty if the model never calls its attention function.

    Raises PreconditionFailed for architectures that the engine can't serve.
    """
    config = model.config.get_text_config()
    kind = config.model_type
    found: dict[int, LayerShape] = {}
    windows: dict[int, int | None] = {}

    def watch(
        module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **kwargs: Any
    ) -> Any:
        index = getattr(module, "layer_idx", None)
        if not isinstance(index, int):
            raise PreconditionFailed(f"{kind} does not number its attention layers")
        if index in found:
            raise PreconditionFailed(f"{kind} attends more than once in layer {index}: the engine can't serve it")
        found[index] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        windows[index] = kwargs.get("sliding_window")
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    before = model.config._attn_implementation
    model.set_attn_implementation(register_attention(watch))
    try:
        with torch.inference_mode():
            ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
            model(input_ids=ids, position_ids=torch.arange(2, device=model.device)[None], use_cache=False)
    except PreconditionFailed:
        raise
    except (
        Exception
    ) as error:  # it looks at what an attention function gets or gives in a way that this one doesn't know
        raise PreconditionFailed(
            f"{kind} does not run with another attention function: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    finally:
        model.set_attn_implementation(before)
    if not found:
        return []
    layers = config.num_hidden_layers
    if sorted(found) != list(range(layers)):
        raise PreconditionFailed(
            f"{kind} does not run all its {layers} layers through transformers' attention interface"
        )
    kinds = getattr(config, "layer_types", None) or []
    for index, layer_type in enumerate(kinds[:layers]):
        if layer_type not in ("full_attention", "sliding_attention"):
            raise PreconditionFailed(f"{kind} has layers of type {layer_type}: the engine can't serve it")
        if layer_type == "sliding_attention" and windows[index] is None:
            raise PreconditionFailed(f"{kind} does not pass its attention function the sliding window of layer {index}")
    return [found[index] for index in range(layers)]
