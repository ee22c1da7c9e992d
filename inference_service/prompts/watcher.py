"""Follows the store: loads new versions, keeps serving while the store is unavailable.

`shared.store.watch` polls. Polling and loading are separate, so that a slow load never delays an alias move. Damaged
versions are not retried. Versions that could not be fetched are retried with growing pauses, and immediately when the
store is available again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from inference_service.prompts.first_loads import StartLimits, left_for_later, recently_used
from inference_service.prompts.load_queue import MAX_CONCURRENT_LOADS, VersionLoads
from inference_service.prompts.observer import PromptObserver
from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.version import VersionKey
from shared.errors import SoftPromptError, Unavailable
from shared.process.call_pool import CallPool
from shared.store.index import StoreIndex, VersionRecord
from shared.store.replicas import ReplicaRecord
from shared.store.watch import StoreWatcher, WatchedStore

log = logging.getLogger(__name__)

MAX_RETRY_SECONDS = 30.0
"""Maximum pause before a version that could not be fetched is retried."""

MAX_EAGER_LOADS = 256
"""Maximum number of new versions to load after one poll.

Of a larger burst (a bulk import) the rest is loaded only if aliases name it, or on demand.
"""


class ReplicaStore(WatchedStore, Protocol):
    """The watcher's interface to the store."""

    def list_replicas(self) -> Sequence[ReplicaRecord]:
        """The records of the fleet's replicas. Raises Unavailable."""


@dataclass(frozen=True)
class _Retry:
    """A version that could not be fetched `attempts` times; `due_at` is on the event loop's clock."""

    record: VersionRecord
    attempts: int
    due_at: float


class PromptWatcher:
    """Keeps the registry at the store's state: `start` once, `run` until cancelled."""

    def __init__(
        self,
        store: ReplicaStore,
        registry: PromptRegistry,
        loads: VersionLoads,
        observer: PromptObserver,
        poll_seconds: float,
        pool: CallPool | None = None,
        limits: StartLimits | None = None,
    ) -> None:
        """`pool` runs calls to the store (None creates one); `limits` bound the loads before readiness."""
        self._limits = limits or StartLimits()
        self._pool = pool or CallPool("prompt_store_watch", max_threads=2)
        self._watcher = StoreWatcher(store, None, poll_seconds, self._pool, follows_replacement=False)
        self._store, self._registry, self._loads, self._observer = store, registry, loads, observer
        self._poll_seconds = poll_seconds
        self._pending: OrderedDict[VersionKey, VersionRecord] = OrderedDict()
        self._failed: dict[VersionKey, _Retry] = {}
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._busy = 0
        self._was_away = False

    async def start(self) -> None:
        """Wait for the store, then load the first versions within the limits.

        Versions that are not loaded by then are loaded while this replica serves, or by their first request
        (`first_loads`).
        """
        while not await self._poll():
            await self._watcher.pause()
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(self._worker()) for _ in range(MAX_CONCURRENT_LOADS)]
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.max_seconds):
                    await self._until_idle()
            for worker in workers:
                worker.cancel()
        if self._pending:
            log.warning("ready; versions are still loading", extra={"fields": {"versions": len(self._pending)}})

    async def run(self) -> None:
        """Poll the store and load versions until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(MAX_CONCURRENT_LOADS):
                group.create_task(self._worker())
            while True:
                await self._watcher.pause()
                await self._poll()

    async def catch_up(self) -> None:
        """Wait for a poll that begins after this call, for a request that names an unknown version."""
        await self._watcher.catch_up()

    async def _poll(self) -> bool:
        """Poll the store once. False if it is unavailable."""
        changes = await self._watcher.poll()
        if changes is None:
            self._was_away = True
            self._observer.store_failed()
            return False
        first = self._registry.first_revision is None
        recent = await self._recently_used() if first else []
        self._observer.store_polled(changes.index.revision)
        self._take(changes.index, recent)
        self._retry(at_once=self._was_away)
        self._was_away = False
        return True

    async def _recently_used(self) -> list[str]:
        """The order in which to load; empty if it can't be read in time, since it is only an optimisation."""
        try:
            return recently_used(await self._pool.call(self._store.list_replicas))
        except SoftPromptError as error:
            log.info("recently used prompts unknown: %s", error.message)
            return []

    def _take(self, index: StoreIndex, recent: list[str]) -> None:
        first = self._registry.first_revision is None
        if first and (later := left_for_later(index, recent, self._limits.max_versions)):
            log.info("some versions load on their first request", extra={"fields": {"aliases": len(later)}})
            self._registry.defer(later)
        if first or index is not self._registry.index:
            fresh = self._registry.update(index)
            if not first:
                fields = {"revision": index.revision, "new_versions": len(fresh)}
                log.info("new store revision", extra={"fields": fields})
            self._enqueue([] if first else fresh[-MAX_EAGER_LOADS:])
            self._enqueue(self._registry.wanted())

    def _retry(self, *, at_once: bool) -> None:
        now = asyncio.get_running_loop().time()
        self._enqueue([retry.record for retry in self._failed.values() if at_once or retry.due_at <= now])

    def _enqueue(self, records: list[VersionRecord]) -> None:
        for record in records:
            self._pending[record.prompt, record.version] = record
        if self._pending:
            self._idle.clear()
            self._work.set()

    async def _worker(self) -> None:
        while True:
            while not self._pending:
                if not self._busy:
                    self._idle.set()
                self._work.clear()
                await self._work.wait()
            key, record = self._pending.popitem(last=False)
            failed = self._failed.pop(key, None)
            if self._registry.is_settled(record) or not self._registry.is_current(record):
                continue
            self._busy += 1
            try:
                await self._loads.load(record)
            except asyncio.CancelledError:
                self._pending[key] = record  # the load continues; its result is checked later
                raise
            except Unavailable as error:
                self._failed[key] = self._again_later(record, failed.attempts + 1 if failed else 1, error)
            finally:
                self._busy -= 1

    def _again_later(self, record: VersionRecord, attempts: int, error: Unavailable) -> _Retry:
        pause = min(self._poll_seconds * 2 ** min(attempts, 16), MAX_RETRY_SECONDS) * random.uniform(0.8, 1.2)
        fields = {"version": record.name, "why": error.message, "attempts": attempts, "next_seconds": round(pause, 2)}
        log.warning("version not loaded yet", extra={"fields": fields})
        return _Retry(record, attempts, asyncio.get_running_loop().time() + pause)

    async def _until_idle(self) -> None:
        if self._pending or self._busy:
            await self._idle.wait()
