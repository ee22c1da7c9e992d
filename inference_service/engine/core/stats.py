"""Statistics of the engine as plain data; the service's metrics module exports them to Prometheus."""

from __future__ import annotations

from dataclasses import dataclass

from inference_service.engine.core.request import FinishReason, TokenUsage


@dataclass(frozen=True)
class EngineStats:
    """A snapshot between two steps. Counters only grow; the rest are gauges."""

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    kv_blocks_used: int = 0
    """Blocks held by running requests."""
    kv_blocks_total: int = 0
    prefixes_loaded: int = 0
    prefix_kv_bytes: int = 0
    prefix_kv_max_bytes: int = 0
    prefix_kv_hits: int = 0
    prefix_kv_loads: int = 0
    """Computations of a prefix KV, both the first one and those after an eviction."""
    prefix_kv_evictions: int = 0
    preemptions: int = 0

    @property
    def kv_usage(self) -> float:
        """Part of the KV blocks that running requests hold, 0 to 1."""
        return self.kv_blocks_used / self.kv_blocks_total if self.kv_blocks_total else 0.0


@dataclass(frozen=True)
class FinishedRequest:
    """Statistics of one request when it ends, times in seconds. `ttft_seconds` is None if it ended without a token."""

    tenant: str
    """Empty for the service's own requests, such as a golden replay."""
    prefix_id: str | None
    finish_reason: FinishReason
    usage: TokenUsage
    queue_seconds: float
    ttft_seconds: float | None
    e2e_seconds: float
    inter_token_seconds: tuple[float, ...]
    is_score: bool = False
    caller: str = ""


@dataclass(frozen=True)
class StepStats:
    """Duration and size of one step."""

    seconds: float
    num_positions: int


class EngineObserver:
    """Receives statistics in the engine's thread, quickly and without raising. This one ignores them."""

    def on_step(self, step: StepStats) -> None:
        """A step has ended."""

    def on_finished(self, request: FinishedRequest) -> None:
        """A request has ended, for any reason."""
