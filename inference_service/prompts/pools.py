"""A replica's threads for calls to the prompt store: a fetch that hangs delays neither polls nor heartbeats."""

from __future__ import annotations

from inference_service.prompts.version_loader import MAX_FETCHES
from shared.process.call_pool import CallPool


class StorePools:
    """One pool for each kind of call."""

    def __init__(self, timeout_seconds: float) -> None:
        """`timeout_seconds`: time limit of each call."""
        self.watch = CallPool("prompt_store_watch", max_threads=2, timeout_seconds=timeout_seconds)
        self.fetch = CallPool("prompt_store_fetch", max_threads=MAX_FETCHES, timeout_seconds=timeout_seconds)
        self.heartbeat = CallPool("prompt_store_heartbeat", max_threads=2, timeout_seconds=timeout_seconds)
        self.usage = CallPool("prompt_store_usage", max_threads=1, timeout_seconds=timeout_seconds)
        self.all = self.watch, self.fetch, self.heartbeat, self.usage
        """All pools, for metrics and `close`."""

    def close(self) -> None:
        """Close all pools without waiting for calls that hang."""
        for pool in self.all:
            pool.close()
