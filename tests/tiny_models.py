"""Tiny random models with real tokenizers, built on the spot: what unit tests train on and serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from shared.model.options import ModelOptions

FLOAT32 = ModelOptions(dtype="float32", device="cpu")
"""Loads a model as most tests compute with it."""
SPECIAL_TOKENS = ("<pad>", "<end>", "<user>", "<assistant>", "<system>")
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
_TURN = "<{{ message.role }}>{{ message.content }}<end>"
CHAT_TEMPLATE = (
    "{% for message in messages %}" + _TURN + "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
LLAMA_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Ids 0 to 4 are special, then one id for each byte: every text has a tokenization, and no BOS is added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tiny_llama(directory: Path, seed: int = 0, **overrides: Any) -> Path:
    """Save a random Llama with `byte_tokenizer` as a model directory; the same seed gives the same weights."""
    return save_tiny_model(directory, "llama", seed, **{**LLAMA_SHAPE, **overrides})


def save_tiny_model(directory: Path, model_type: str, seed: int = 0, **config: Any) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config)).float()
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory
