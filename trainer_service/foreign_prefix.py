"""Keys and values that another program flattened to one matrix: PEFT's prefix tuning and cartridges.

PEFT puts them into the model's cache as they are and gives the first input token the position after them, as this
service does; so no rotary embedding is undone or added.
"""

from __future__ import annotations

from typing import Any

import torch

from shared.errors import PreconditionFailed
from shared.prompt.key_values import KeyValuePrefix
from trainer_service.base_models import KnownBaseModel


def flat_width(model: KnownBaseModel) -> int:
    """Numbers that PEFT keeps of one position: two for each layer, head and component of a head."""
    heads, width = _heads(model)
    return 2 * model.info.num_layers * heads * width


def from_flat(matrix: torch.Tensor, model: KnownBaseModel) -> KeyValuePrefix:
    """The prefix of a matrix `[num_virtual_tokens, layers * 2 * kv_heads * width]`, float32.

    Raises PreconditionFailed for another width, or a model with latent attention, for which PEFT has no form.
    """
    heads, width = _heads(model)
    if matrix.dim() != 2 or matrix.shape[1] != flat_width(model):
        raise PreconditionFailed(
            f"the matrix is {list(matrix.shape)}; keys and values for {model.info.id} with fingerprint "
            f"{model.info.fingerprint} take {flat_width(model)} numbers for each position "
            f"({model.info.num_layers} layers, {heads} heads of width {width})",
            base_model_fingerprint=model.info.fingerprint,
        )
    layers = matrix.reshape(matrix.shape[0], model.info.num_layers, 2, heads, width)
    keys, values = (
        tuple(layers[:, layer, part].contiguous() for layer in range(model.info.num_layers)) for part in (0, 1)
    )
    return KeyValuePrefix(keys, values)


def _heads(model: KnownBaseModel) -> tuple[int, int]:
    """(key-value heads, width of a head), by PEFT's rule."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(model.path, trust_remote_code=False).get_text_config()
    if isinstance(getattr(config, "kv_lora_rank", None), int):
        raise PreconditionFailed(
            f"{model.info.id} keeps latents instead of keys and values; another program's prefix can't be imported"
        )
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, width
