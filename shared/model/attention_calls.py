"""What a model's layers ask of their attention, observed in one tiny forward pass.

Works for any architecture: transformers calls a registered attention function with the layer, its keys and its values,
and a registered mask function with the window or the chunk that the mask has.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from shared.errors import PreconditionFailed

_names = count()


@dataclass(frozen=True)
class AttentionCall:
    """One call of the attention function."""

    layer: int | None
    """None for a module that does not number its layer."""
    kv_heads: int
    key_width: int
    value_width: int
    is_described: bool
    """Whether the arguments describe everything that the mask hides. Windows and chunks are mostly longer than the
    checks' few tokens, which can't show the difference.
    """


def register_attention(function: Any, mask_function: Any = None) -> str:
    """Register an attention function with transformers under a unique name, so that models don't share state, and
    return the name.

    Without `mask_function`, models build no masks under the name.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    name = f"softprompt-{next(_names)}"
    AttentionInterface.register(name, function)
    if mask_function is not None:
        AttentionMaskInterface.register(name, mask_function)
    return name


def attention_calls(model: Any) -> list[AttentionCall]:
    """The calls of one pass, in order; empty if the model never calls its attention function.

    Raises PreconditionFailed for a model that does not run with another function.
    """
    found: list[AttentionCall] = []

    def watch(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any = None,
        *_: Any,
        **kwargs: Any,
    ) -> Any:
        index = getattr(module, "layer_idx", None)
        expected = _mask_of(kwargs.get("sliding_window") or 0)
        is_described = not isinstance(attention_mask, torch.Tensor) or bool((attention_mask == expected).all())
        layer = index if isinstance(index, int) else None
        found.append(AttentionCall(layer, key.shape[1], key.shape[3], value.shape[3], is_described))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    before = model.config._attn_implementation
    model.set_attn_implementation(register_attention(watch, _mask_that_names_its_window))
    try:
        with torch.inference_mode():
            ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
            model(input_ids=ids, position_ids=torch.arange(2, device=model.device)[None], use_cache=False)
    # The model may use the arguments or the result of its attention in a way that `watch` doesn't support.
    except Exception as error:
        raise PreconditionFailed(
            f"{model.config.get_text_config().model_type} does not run with another attention function: "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error
    finally:
        model.set_attn_implementation(before)
    return found


def _mask_that_names_its_window(
    batch_size: int, q_length: int, kv_length: int, *_: Any, local_size: int | None = None, **kwargs: Any
) -> torch.Tensor:
    """In place of a mask, `[batch, 1, q, k]` of one number. A model that changes its masks changes the number."""
    return torch.full((batch_size, 1, q_length, kv_length), _mask_of(local_size or 0), device=kwargs.get("device"))


def _mask_of(window: int) -> float:
    """`window`: keys that a query sees, or the length of a chunk; 0: no limit."""
    return -1.0 - window
