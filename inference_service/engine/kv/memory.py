"""Divides the free memory at start between the caches. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from inference_service.engine.core.config import LENGTH_SETTING, EngineConfig
from inference_service.engine.kv.rows import BLOCK_TOKENS
from shared.errors import InvalidInput

KV_SHARE, PREFIX_SHARE = 0.4, 0.2
"""Parts of the free memory; the rest is for activations, logits and the process itself."""


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes of the caches."""

    max_length: int
    length_limit: str
    """The origin of `max_length` for error texts: a setting, the model or the memory."""
    max_blocks: int
    prefix_bytes: int


def plan_memory(
    config: EngineConfig, bytes_per_token: int, max_positions: int, free_bytes: int, block_tokens: int = BLOCK_TOKENS
) -> MemoryPlan:
    """Blocks for running requests (at most all rows filled) and bytes for prefix KV.

    Raises InvalidInput if the memory is too small for one request; otherwise one request of `max_length` always fits.
    """
    kv_bytes = config.kv_cache_bytes or int(free_bytes * KV_SHARE)
    affordable = kv_bytes // (bytes_per_token * block_tokens)
    max_length = min(config.max_length, max_positions, affordable * block_tokens)
    if max_length < 2:
        raise InvalidInput.of(
            "kv_cache_bytes", f"{kv_bytes} bytes hold no {block_tokens} tokens of {bytes_per_token} bytes each"
        )
    limits = {
        "the model's context": max_positions,
        "the memory for keys and values (SOFTPROMPT_INFERENCE_KV_CACHE_BYTES)": affordable * block_tokens,
        LENGTH_SETTING: config.max_length,
    }
    return MemoryPlan(
        max_length=max_length,
        length_limit=next(name for name, limit in limits.items() if limit == max_length),
        max_blocks=min(affordable, config.max_running * -(-max_length // block_tokens)),
        prefix_bytes=config.prefix_kv_bytes or int(free_bytes * PREFIX_SHARE),
    )
