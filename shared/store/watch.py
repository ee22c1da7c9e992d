"""Following a store: one asynchronous iterator for the replicas' watcher and for WatchPrompts alike."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator

from shared.errors import SoftPromptError
from shared.process.call_pool import CallPool
from shared.store.follower import Changes
from shared.store.store import PromptStore

log = logging.getLogger(__name__)

BACKOFF = 1.6
"""How much less often a store is asked while it is away: with the jitter, never two polls apart."""
_JITTER = (0.8, 1.2)


class StoreWatcher:
    """Yields `Changes` whenever the store has moved, for ever, starting after `since` (None: with the present state, at
    once).

    While the store is away it asks a little less often, but never so much less that it would not catch up within two
    polls of the store's return, however long that takes; it says so once in the log. An entry that can't be read stops
    it likewise until it can. Cancel the task to end it.
    """

    def __init__(
        self,
        store: PromptStore,
        since: int | None = None,
        poll_seconds: float | None = None,
        pool: CallPool | None = None,
    ) -> None:
        """`pool`: the threads to ask the store in; None: one of its own."""
        self._store = store
        self._pool = pool or CallPool("prompt_store_watch", max_threads=1)
        self._poll_seconds = poll_seconds or store.poll_seconds
        self._store_id = store.id
        self._last_contact = time.monotonic()
        self.revision = since
        self.problem = ""
        """Why the store could not be followed at the last try, or nothing."""

    @property
    def seconds_since_contact(self) -> float:
        return time.monotonic() - self._last_contact

    async def __aiter__(self) -> AsyncIterator[Changes]:
        while True:
            changes = await self._ask()
            if changes is not None and (changes.commits or changes.restarted):
                self.revision = changes.index.revision
                yield changes
            await asyncio.sleep(self._pause())

    async def _ask(self) -> Changes | None:
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
        self._last_contact = time.monotonic()
        if (
            self._store_id != self._store.id
        ):  # another store in the same place: its revisions are not those that we know
            self._store_id = self._store.id
            return Changes((), changes.index, restarted=True)
        return changes

    def _pause(self) -> float:
        return pause_seconds(self._poll_seconds, bool(self.problem))


def pause_seconds(poll_seconds: float, away: bool) -> float:
    """Until the next look. Jittered, so that a fleet that started together does not ask together."""
    return poll_seconds * random.uniform(*_JITTER) * (BACKOFF if away else 1.0)


def watch(
    store: PromptStore, since: int | None = None, poll_seconds: float | None = None, pool: CallPool | None = None
) -> AsyncIterator[Changes]:
    """`StoreWatcher` as a plain iterator."""
    return aiter(StoreWatcher(store, since, poll_seconds, pool))
