"""Tiny random models of many architectures, in memory, float32."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from shared.model.base_model import BaseModel
from shared.values.base_model import BaseModelInfo
from tests.tiny_models import VOCAB_SIZE, byte_tokenizer

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 8},
    "gemma2": {"head_dim": 16, "sliding_window": 8},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 6},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi3": {},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "sliding_window": 8},
}
_EAGER = frozenset({"gemma2", "gpt_oss"})  # transformers' own sdpa has neither soft-capping nor sinks


def build(model_type: str = "llama", seed: int = 0, **overrides: Any) -> BaseModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**_SHAPE, **ARCHITECTURES.get(model_type, {}), **overrides})
    attention = "eager" if model_type in _EAGER else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval().requires_grad_(False)
    info = BaseModelInfo(
        id=f"tiny-{model_type}",
        fingerprint="sha256:" + "0" * 64,
        tokenizer_digest="sha256:" + "0" * 64,
        architecture=type(model).__name__,
        hidden_size=64,
        vocab_size=VOCAB_SIZE,
        num_layers=config.num_hidden_layers,
        max_positions=256,
    )
    return BaseModel(info, model, byte_tokenizer(), torch.device("cpu"), torch.float32)
