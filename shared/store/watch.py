"""Follows a store: the one loop that polls it, for replicas and for callers' watches."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from typing import Protocol

from shared.errors import SoftPromptError, Unavailable
from shared.process.call_pool import CallPool
from shared.process.waits import wait_at_most
from shared.store.follower import Changes

log = logging.getLogger(__name__)

BACKOFF = 1.6
"""Factor of the poll interval while the store is unavailable. With the jitter, it stays below two intervals."""
_JITTER = (0.8, 1.2)
_MIN_PAUSE_SECONDS = 0.5
"""Shortest pause between two polls, if the poll interval is longer than four times that."""
_CATCH_UP_SECONDS = 2.0


class WatchedStore(Protocol):
    """The watcher's interface to a store."""

    @property
    def id(self) -> str:
        """The identity of the store; another id means another store."""

    @property
    def poll_seconds(self) -> float:
        """The default time between two polls."""

    def changes_since(self, revision: int | None) -> Changes:
        """The commits after `revision` and the current state. Raises Unavailable, DamagedBlob."""


class StoreWatcher:
    """Polls a store. As an iterator, yields `Changes` whenever the store has changed, without end; cancel the task to
    stop it. `poll` and `pause` are the same loop for a caller that does something after every poll.

    Starts after revision `since`, or at once with the current state if `since` is None. While the store is unavailable
    or an entry can't be read, it logs this once and polls slightly less often, so that it catches up within two poll
    intervals after the problem has ended.
    """

    def __init__(
        self,
        store: WatchedStore,
        since: int | None = None,
        poll_seconds: float | None = None,
        pool: CallPool | None = None,
        *,
        follows_replacement: bool = True,
    ) -> None:
        """`pool` runs the calls to the store; None: a new pool with one thread. `follows_replacement`: whether to go on
        with a store that has replaced the first one, whose revisions are not comparable; otherwise it is a problem.
        """
        self._store = store
        self._pool = pool or CallPool("prompt_store_watch", max_threads=1)
        self._poll_seconds, self._follows_replacement = poll_seconds or store.poll_seconds, follows_replacement
        self._store_id = store.id
        self._wanted = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self.revision = since
        self.problem = ""
        """Why the last poll failed; empty if it succeeded."""

    async def __aiter__(self) -> AsyncIterator[Changes]:
        while True:
            changes = await self.poll()
            if changes is not None and (changes.commits or changes.restarted):
                yield changes
            await self.pause()

    async def poll(self) -> Changes | None:
        """Poll once. None if the store is unavailable; `problem` is the reason."""
        waiting, self._waiting = self._waiting, []
        try:
            changes = await self._pool.call(self._changes)
        except SoftPromptError as error:
            if error.message != self.problem:
                log.warning("the prompt store can't be followed since revision %s: %s", self.revision, error.message)
            self.problem = error.message
            return None
        finally:
            for polled in waiting:
                if not polled.done():
                    polled.set_result(None)
        if self.problem:
            log.warning("the prompt store can be followed again, revision %d", changes.index.revision)
        self.problem = ""
        self.revision = changes.index.revision
        return changes

    async def pause(self) -> None:
        """Wait until the next poll is due, or `catch_up` wants one."""
        seconds, spacing = pause_seconds(self._poll_seconds, bool(self.problem)), self._poll_seconds / 4
        spacing = min(spacing, _MIN_PAUSE_SECONDS)
        await asyncio.sleep(spacing)
        await wait_at_most(seconds - spacing, self._wanted)
        self._wanted.clear()

    async def catch_up(self) -> None:
        """Wait for a poll that begins after this call, for a caller that needs the newest state now.

        Limited in time and never raises; concurrent callers share one poll.
        """
        if self.problem:
            return
        polled = asyncio.get_running_loop().create_future()
        self._waiting.append(polled)
        self._wanted.set()
        try:
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                await polled
        except TimeoutError:
            log.warning("the prompt store is slow to answer")

    def _changes(self) -> Changes:
        changes = self._store.changes_since(self.revision)
        if self._store_id and self._store.id != self._store_id:
            if not self._follows_replacement:
                raise Unavailable("the prompt store was replaced by another one; restart this replica to follow it")
            changes = Changes((), changes.index, restarted=True)
        self._store_id = self._store.id
        return changes


def pause_seconds(poll_seconds: float, unavailable: bool) -> float:
    """Time until the next poll, with jitter, so that replicas that started together don't poll together."""
    return poll_seconds * random.uniform(*_JITTER) * (BACKOFF if unavailable else 1.0)
