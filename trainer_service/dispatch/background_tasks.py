"""What the dispatcher starts and doesn't wait for, so that one silent worker or a full disk holds up no other job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

log = logging.getLogger(__name__)

Key = tuple[str, ...]


class BackgroundTasks:
    """At most one task for each key, however often it is begun; what goes wrong is logged. For the event loop's own
    thread.
    """

    def __init__(self) -> None:
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    def begin(self, key: Key, work: Callable[[], Awaitable[None]]) -> None:
        """Unless this key's task is still under way."""
        if key not in self._tasks:
            task = asyncio.create_task(self._run(key, work), name=f"dispatcher {' '.join(key)}")
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def is_under_way(self, key: Key) -> bool:
        return key in self._tasks

    async def wait(self, keys: Collection[Key], seconds: float) -> None:
        """Until these are done, or for that long: they go on."""
        if tasks := [self._tasks[key] for key in keys if key in self._tasks]:
            await asyncio.wait(tasks, timeout=max(0.0, seconds))

    def cancel(self, *first: str) -> list[asyncio.Task[None]]:
        """Cancel the tasks whose keys begin with `first`. Returns those tasks; they end soon."""
        tasks = [task for key, task in self._tasks.items() if key[: len(first)] == first]
        for task in tasks:
            task.cancel()
        return tasks

    async def _run(self, key: Key, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:
            log.exception("%s failed", " ".join(key))
