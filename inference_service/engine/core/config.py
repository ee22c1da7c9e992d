"""The engine's settings. The module reads no environment variables; the service's settings create one of these."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import FieldViolation, InvalidInput
from shared.kernels.serving_linear import LinearKernel
from shared.values.sampling import LIMITS, SamplingLimits

LENGTH_SETTING = "the setting SOFTPROMPT_INFERENCE_MAX_LENGTH"


@dataclass(frozen=True)
class EngineConfig:
    """Limits and options of one engine. Raises InvalidInput that names each field out of range."""

    max_running: int = 32
    """Maximum number of requests in one step; each has a row of the KV cache."""
    max_length: int = 4096
    """Maximum of virtual, input and generated tokens of one request; lowered to the limits of the model and the memory.
    """
    length_limit: str = LENGTH_SETTING
    """The origin of `max_length` for error texts: the setting, the model or the memory."""
    max_tokens_per_step: int = 256
    """Maximum number of positions in one step. It bounds how long a long input delays the other streams."""
    kv_cache_bytes: int = 0
    """Memory for the keys and values of running requests, in bytes; 0 takes a part of the free memory at start."""
    prefix_kv_bytes: int = 0
    """Memory for the prefix KV of soft prompts, in bytes; 0 takes a part of the free memory at start.

    The least recently used prefixes are evicted and computed again on demand.
    """
    max_waiting: int = 256
    """Maximum number of waiting requests; further ones are refused with Overloaded.

    Exception: a tenant that uses less than its share of the queue.
    """
    max_waiting_tokens: int = 262_144
    """Maximum of input and candidate tokens of all waiting requests, with the same exception."""
    flush_interval_seconds: float = 0.02
    """Minimum time between two deltas of a stream; tokens in between are merged. The first one is sent immediately."""
    paged: bool | None = None
    """Store keys and values in blocks instead of rows; None means blocks on a GPU and rows on a CPU (the faster ones).
    """
    reuse_text_prefixes: bool = True
    """Keep the rows of finished requests, so that inputs with a common beginning under one prompt share its KV."""
    reuse_across_tenants: bool = False
    """Share text also between tenants. The count of cached tokens then reveals parts of other tenants' inputs."""
    linear_kernel: LinearKernel = "auto"
    """The kernel of a CPU's matrix products; `auto` measures at load, a name gives the same numbers after a restart."""
    limits: SamplingLimits = LIMITS
    """Limits of one request's parameters."""

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
