"""Small valid versions for tests of the store."""

from __future__ import annotations

from typing import Any

import torch

from shared.prompt.blob import encode_blob
from shared.prompt.key_values import KeyValuePrefix
from shared.prompt.manifest import GoldenRecord, Manifest
from shared.prompt.prefix import Prefix
from shared.prompt.soft_prompt import SoftPrompt
from shared.text.template import Template
from shared.values.base_model import BaseModelInfo
from shared.values.enums import PrefixKind

TIME = "2026-01-02T03:04:05.000006Z"


def base_model_info(hidden_size: int = 8) -> BaseModelInfo:
    return BaseModelInfo(
        id="tiny",
        fingerprint="sha256:" + "f" * 64,
        tokenizer_digest="sha256:" + "e" * 64,
        architecture="LlamaForCausalLM",
        hidden_size=hidden_size,
        vocab_size=261,
        num_layers=2,
        max_positions=512,
    )


def soft_prompt(seed: int = 0, num_virtual_tokens: int = 4, hidden_size: int = 8) -> SoftPrompt:
    return SoftPrompt(torch.randn(num_virtual_tokens, hidden_size, generator=torch.Generator().manual_seed(seed)))


def key_values(
    seed: int = 0, num_virtual_tokens: int = 4, num_layers: int = 2, heads: int = 1, width: int = 4
) -> KeyValuePrefix:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (
        tuple(torch.randn(num_virtual_tokens, heads, width, generator=generator) for _ in range(num_layers))
        for _ in range(2)
    )
    return KeyValuePrefix(keys, values)


def prefix_of(kind: PrefixKind, seed: int = 0) -> Prefix:
    """A prefix of any kind for `manifest(kind=kind)`."""
    return soft_prompt(seed) if kind is PrefixKind.PROMPT else key_values(seed).rounded()


def manifest(
    prompt: str = "support-tone", num_virtual_tokens: int = 4, hidden_size: int = 8, **fields: Any
) -> Manifest:
    golden = GoldenRecord(
        text="hello", input_ids=(5, 6), top_token_ids=(7, 8), top_logprobs=(-0.1, -2.5), dtype="float32"
    )
    values: dict[str, Any] = {
        "prompt": prompt,
        "job": "tuningJobs/1",
        "base_model": base_model_info(hidden_size),
        "template": Template(text="Say: {input}"),
        "num_virtual_tokens": num_virtual_tokens,
        "hidden_size": hidden_size,
        "metrics": {"loss": 0.5},
        "recipe": {"learning_rate": 0.01, "seed": 7},
        "golden": (golden,),
        "created_at": TIME,
    }
    return Manifest(**{**values, **fields})


def make_blob(prompt: str = "support-tone", seed: int = 0, kind: PrefixKind = PrefixKind.PROMPT) -> bytes:
    """The bytes of a version; each seed gives another digest."""
    return encode_blob(prefix_of(kind, seed), manifest(prompt, kind=kind))
