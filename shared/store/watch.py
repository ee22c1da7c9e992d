"""Follows a store with an asynchronous iterator."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator

from shared.errors import SoftPromptError
from shared.process.call_pool import CallPool
from shared.store.follower import Changes
from shared.store.store import PromptStore

log = logging.getLogger(__name__)

BACKOFF = 1.6
"""Factor of the poll interval while the store is unavailable. With the jitter, it stays below two intervals."""
_JITTER = (0.8, 1.2)


class StoreWatcher:
    """Yields `Changes` whenever the store has changed, without end; cancel the task to stop it.

    Starts after revision `since`, or at once with the current state if `since` is None. While the store is unavailable
    or an entry can't be read, it logs this once and polls slightly less often, so that it catches up within two poll
    intervals after the problem has ended.
    """

    def __init__(
        self,
        store: PromptStore,
        since: int | None = None,
        poll_seconds: float | None = None,
        pool: CallPool | None = None,
    ) -> None:
        """`pool` runs the calls to the store; None: a new pool with one thread."""
        self._store = store
        self._pool = pool or CallPool("prompt_store_watch", max_threads=1)
        self._poll_seconds = poll_seconds or store.poll_seconds
        self._store_id = store.id
        self.revision = since
        self.problem = ""
        """Why the last poll failed; empty if it succeeded."""

    async def __aiter__(self) -> AsyncIterator[Changes]:
        while True:
            changes = await self._poll()
            if changes is not None and (changes.commits or changes.restarted):
                self.revision = changes.index.revision
                yield changes
            await asyncio.sleep(self._pause())

    async def _poll(self) -> Changes | None:
        try:
            changes = await self._pool.call(self._store.changes_since, self.revision)
        except SoftPromptError as error:
            if error.message != self.problem:
                log.warning("the prompt store can't be followed since revision %s: %s", self.revision, error.message)
            self.problem = error.message
            return None
        if self.problem:
            log.info("the prompt store can be followed again, revision %d", changes.index.revision)
        self.problem = ""
        if self._store_id != self._store.id:  # the store was replaced: its revisions are not comparable
            self._store_id = self._store.id
            return Changes((), changes.index, restarted=True)
        return changes

    def _pause(self) -> float:
        return pause_seconds(self._poll_seconds, bool(self.problem))


def pause_seconds(poll_seconds: float, unavailable: bool) -> float:
    """Time until the next poll, with jitter, so that replicas that started together don't poll together."""
    return poll_seconds * random.uniform(*_JITTER) * (BACKOFF if unavailable else 1.0)
