"""The engine's settings. `inference_service.config` inherits them; nothing here reads the environment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.kernels.formats import LinearKernel, Weights
from shared.settings_part import SettingsPart
from shared.values.sampling import LIMITS, SamplingLimits

LENGTH_SETTING = "the setting SOFTPROMPT_INFERENCE_MAX_LENGTH"


class EngineSettings(SettingsPart):
    """Limits and options of one engine that an operator sets."""

    max_running: int = Field(default=32, ge=1, le=4096)
    """Maximum number of requests in one step; each has a row of the KV cache."""
    max_length: int = Field(default=4096, ge=8, le=1 << 20)
    """Maximum of virtual, input and generated tokens of one request. Lowered to what model and memory allow."""
    max_tokens_per_step: int = Field(default=256, ge=1)
    """Maximum number of positions in one step; bounds how long a long input delays running streams."""
    kv_cache_bytes: int = Field(default=0, ge=0)
    """Memory for keys and values of running requests, in bytes; 0: a part of the free memory."""
    prefix_kv_bytes: int = Field(default=0, ge=0)
    """Memory for keys and values of soft prompts, in bytes; 0: a part of the free memory.

    The least recently used prefixes are evicted and computed again on demand.
    """
    text_reuse: Literal["tenant", "all", "off"] = "tenant"
    """Which inputs reuse the keys and values of an earlier input: of the same tenant, all, or none.

    Inputs with the same beginning share that part. Use `all` only with one tenant: it lets a tenant guess another
    tenant's inputs to a prompt that both use.
    """
    linear_kernel: LinearKernel = "auto"
    """Matrix kernel on a CPU: auto (measured at each start), torch, onednn, fbgemm or native.

    With a name, a seed gives the same text after a restart on the same kind of processor; an unavailable kernel stops
    the start.
    """
    weights: Weights = "stored"
    """Weights of linear layers on a CPU: stored, restored, q8_0, q4_1 or q4_0.

    Matrices that were dequantised from a GGUF file (Q4_0, Q4_1, Q8_0) can be kept in its 4 or 8 bits, with the same
    answers up to rounding: `restored` does so always, `stored` where it is measured to be faster and `linear_kernel` is
    auto, or where no bit of an answer differs (AMX). The formats quantise any model, with other answers. Decoding reads
    fewer bytes. Needs the compiled kernels and bfloat16.
    """
    max_waiting: int = Field(default=256, ge=1)
    """Maximum number of waiting requests; further ones are refused with RESOURCE_EXHAUSTED.

    Exception: a tenant that uses less than its part of the queue.
    """
    max_waiting_tokens: int = Field(default=262_144, ge=1)
    """Maximum number of waiting input and candidate tokens, with the same exception."""
    flush_interval_seconds: float = Field(default=0.02, ge=0, le=10)
    """Minimum time between two messages of a stream; tokens in between are merged. The first is sent immediately."""


class EngineConfig(EngineSettings):
    """Limits and options of one engine."""

    length_limit: str = LENGTH_SETTING
    """The origin of `max_length` for error texts: the setting, the model or the memory."""
    paged: bool | None = None
    """Keys and values in blocks instead of rows; None: blocks on a GPU and rows on a CPU, which are faster there."""
    limits: SamplingLimits = LIMITS
    """Limits of one request's parameters."""
