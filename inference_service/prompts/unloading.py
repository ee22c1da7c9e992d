"""Unloads prefixes from the engine without waiting for it."""

from __future__ import annotations

import asyncio

from inference_service.prompts.version_loader import PrefixEngine
from shared.errors import Unavailable


class PrefixUnloader:
    """Call it with a prefix id. The engine keeps the prefix as long as a request uses it."""

    def __init__(self, engine: PrefixEngine) -> None:
        self._engine = engine
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, prefix_id: str) -> None:
        """Unload the prefix in the background."""
        task = asyncio.create_task(self._unload(prefix_id), name=f"unload {prefix_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _unload(self, prefix_id: str) -> None:
        try:
            await self._engine.unload_prefix(prefix_id)
        except Unavailable:
            return  # the engine has stopped, and its memory goes with it
