"""What the engine tells about itself, as data; the service's metrics module turns it into Prometheus series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from inference_service.engine.core.request import FinishReason, Usage


@dataclass(frozen=True)
class EngineStats:
    """A snapshot between two steps. Counters only grow; the rest are gauges."""

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    kv_blocks_used: int = 0
    """Held by running requests."""
    kv_blocks_total: int = 0
    prefixes_known: int = 0
    prefixes_loaded: int = 0
    prefix_kv_bytes: int = 0
    prefix_kv_max_bytes: int = 0
    prefix_kv_hits: int = 0
    prefix_kv_loads: int = 0
    """Prefix KV computed, the first time or after an eviction."""
    prefix_kv_evictions: int = 0
    preemptions: int = 0
    steps: int = 0
    input_tokens: int = 0
    virtual_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    """Of finished and running requests alike."""

    @property
    def kv_usage(self) -> float:
        return self.kv_blocks_used / self.kv_blocks_total if self.kv_blocks_total else 0.0


@dataclass(frozen=True)
class FinishedRequest:
    """One request's story, when it ends. Times in seconds; `ttft_seconds` is None if it ended before a token."""

    request_id: str
    tenant: str
    """Empty: the service's own, such as a golden replay."""
    prefix_id: str | None
    finish_reason: FinishReason
    usage: Usage
    queue_seconds: float
    ttft_seconds: float | None
    e2e_seconds: float
    inter_token_seconds: tuple[float, ...]
    preemptions: int
    is_score: bool = False


@dataclass(frozen=True)
class StepStats:
    """One step: how long it took and what it carried."""

    seconds: float
    num_positions: int
    num_chunks: int
    num_sampled: int


class EngineObserver(Protocol):
    """Called in the engine's thread; must be quick and must not raise."""

    def on_step(self, step: StepStats) -> None: ...

    def on_finished(self, request: FinishedRequest) -> None: ...


class NullObserver:
    def on_step(self, step: StepStats) -> None:
        return

    def on_finished(self, request: FinishedRequest) -> None:
        return
