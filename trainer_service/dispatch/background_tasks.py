"""Tasks that the dispatcher starts without waiting, so an unresponsive worker or a full disk delays no other job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

log = logging.getLogger(__name__)

Key = tuple[str, ...]


class BackgroundTasks:
    """Runs at most one task per key; failures are logged. Use it on the event loop's thread only."""

    def __init__(self) -> None:
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    def begin(self, key: Key, work: Callable[[], Awaitable[None]]) -> None:
        """Starts a task, unless the previous one with this key is still running."""
        if key not in self._tasks:
            task = asyncio.create_task(self._run(key, work), name=f"dispatcher {' '.join(key)}")
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def is_under_way(self, key: Key) -> bool:
        """Whether a task with this key runs."""
        return key in self._tasks

    async def wait(self, keys: Collection[Key], seconds: float) -> None:
        """Waits until these tasks are done, or for `seconds`; unfinished tasks keep running."""
        if tasks := [self._tasks[key] for key in keys if key in self._tasks]:
            await asyncio.wait(tasks, timeout=max(0.0, seconds))

    def cancel(self, *first: str) -> list[asyncio.Task[None]]:
        """Cancels the tasks whose keys begin with `first` and returns them; they end soon."""
        tasks = [task for key, task in self._tasks.items() if key[: len(first)] == first]
        for task in tasks:
            task.cancel()
        return tasks

    async def _run(self, key: Key, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:
            log.exception("%s failed", " ".join(key))
