"""The engine's few knobs. Knows nothing of environment variables: the service's settings make one of these."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import FieldViolation, InvalidInput
from shared.kernels.serving_linear import LinearKernel
from shared.values.sampling import LIMITS, SamplingLimits

LENGTH_SETTING = "the setting SOFTPROMPT_INFERENCE_MAX_LENGTH"


@dataclass(frozen=True)
class EngineConfig:
    max_running: int = 32
    """Requests in one step; each has a row of the KV cache."""
    max_length: int = 4096
    """Virtual tokens + input + generated tokens of one request; lowered to what the model and the memory allow."""
    length_limit: str = LENGTH_SETTING
    """What sets `max_length`, for errors: the setting, the model or the memory."""
    max_tokens_per_step: int = 256
    """Positions computed in one step, whoever asks for what: it bounds how long a long input holds up streams."""
    kv_cache_bytes: int = 0
    """Memory for the keys and values of running requests; 0 takes a part of what is free at the start."""
    prefix_kv_bytes: int = 0
    """Memory for the prefix KV of soft prompts; 0 is a part of what is free. The least recently used give way and come
    back on demand.
    """
    max_waiting: int = 256
    """Requests that may wait; one more is refused with Overloaded, unless its tenant has less waiting than its part of
    the queue.
    """
    max_waiting_tokens: int = 262_144
    """Their input and candidate tokens together, with the same exception."""
    flush_interval_seconds: float = 0.02
    """Tokens of one stream closer together than this travel in one delta (the first goes at once)."""
    paged: bool | None = None
    """Keys and values in blocks instead of rows; None takes blocks on a GPU and rows on a CPU, which is what measures
    faster.
    """
    reuse_text_prefixes: bool = True
    """Keep the rows of finished requests, so that inputs that begin alike under one prompt share that part's KV."""
    reuse_across_tenants: bool = False
    """Also between requests of different tenants. Then the count of cached tokens tells one tenant what another one's
    input said.
    """
    linear_kernel: LinearKernel = "auto"
    """Which kernel computes a CPU's matrix products: `auto` measures at load, a name pins it, so that a restart gives
    the same numbers.
    """
    limits: SamplingLimits = LIMITS

    def __post_init__(self) -> None:
        violations = [
            FieldViolation(name, f"must be at least {low}, is {getattr(self, name)}")
            for name, low in (
                ("max_running", 1),
                ("max_length", 2),
                ("max_tokens_per_step", 1),
                ("kv_cache_bytes", 0),
                ("prefix_kv_bytes", 0),
                ("max_waiting", 1),
                ("max_waiting_tokens", 1),
            )
            if getattr(self, name) < low
        ]
        if not 0.0 <= self.flush_interval_seconds <= 10.0:
            violations.append(
                FieldViolation("flush_interval_seconds", f"must be from 0 to 10, is {self.flush_interval_seconds}")
            )
        if violations:
            raise InvalidInput(violations)
