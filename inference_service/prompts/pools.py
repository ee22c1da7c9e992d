"""A replica's threads for calls to the prompt store.

The pools are separate, so that a fetch that hangs delays neither polls nor heartbeats.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from inference_service.prompts.version_loader import MAX_FETCHES
from shared.process.call_pool import CallPool


@dataclass(frozen=True)
class StorePools:
    """One pool for each kind of call."""

    watch: CallPool = field(default_factory=lambda: CallPool("prompt_store_watch", max_threads=2))
    fetch: CallPool = field(default_factory=lambda: CallPool("prompt_store_fetch", max_threads=MAX_FETCHES))
    heartbeat: CallPool = field(default_factory=lambda: CallPool("prompt_store_heartbeat", max_threads=2))
    usage: CallPool = field(default_factory=lambda: CallPool("prompt_store_usage", max_threads=1))

    @classmethod
    def of(cls, timeout_seconds: float) -> StorePools:
        """Pools with this time limit of each call."""
        return cls(
            watch=CallPool("prompt_store_watch", max_threads=2, timeout_seconds=timeout_seconds),
            fetch=CallPool("prompt_store_fetch", max_threads=MAX_FETCHES, timeout_seconds=timeout_seconds),
            heartbeat=CallPool("prompt_store_heartbeat", max_threads=2, timeout_seconds=timeout_seconds),
            usage=CallPool("prompt_store_usage", max_threads=1, timeout_seconds=timeout_seconds),
        )

    @property
    def all(self) -> tuple[CallPool, ...]:
        """All pools, for metrics and `close`."""
        return self.watch, self.fetch, self.heartbeat, self.usage

    def close(self) -> None:
        """Close all pools without waiting for calls that hang."""
        for pool in self.all:
            pool.close()
