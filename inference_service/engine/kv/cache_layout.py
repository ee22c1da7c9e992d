"""Finds the cache layout that a model's attention layers need, from the calls of one tiny forward pass.

An architecture that calls its attention in some layers only, or needs a mask that the arguments don't describe, is
refused with an error instead of served incorrectly.
"""

from __future__ import annotations

from typing import Any

from inference_service.engine.kv.kv_cache import LayerShape
from shared.errors import PreconditionFailed
from shared.model.attention_calls import AttentionCall, attention_calls


def layer_shapes(model: Any) -> list[LayerShape]:
    """The cache shape of each layer, in order; empty if the model never calls its attention function.

    Raises PreconditionFailed for architectures that the engine can't serve.
    """
    config = model.config.get_text_config()
    kind, layers = config.model_type, config.num_hidden_layers
    calls = attention_calls(model)
    found: dict[int, AttentionCall] = {}
    for call in calls:
        if call.layer is None:
            raise PreconditionFailed(f"{kind} does not number its attention layers")
        if call.layer in found:
            raise PreconditionFailed(f"{kind} attends more than once in layer {call.layer}: the engine can't serve it")
        if not call.is_described:
            raise PreconditionFailed(
                f"the mask of layer {call.layer} of {kind} hides more than the attention function is told"
            )
        found[call.layer] = call
    if not found:
        return []
    if sorted(found) != list(range(layers)):
        raise PreconditionFailed(
            f"{kind} does not run all its {layers} layers through transformers' attention interface"
        )
    kinds = getattr(config, "layer_types", None) or []
    if other := [kind for kind in kinds[:layers] if kind not in ("full_attention", "sliding_attention")]:
        raise PreconditionFailed(f"{config.model_type} has layers of type {other[0]}: the engine can't serve it")
    return [LayerShape(call.kv_heads, call.key_width, call.value_width) for _, call in sorted(found.items())]
