"""The directory that a prompt store gives: its index, and the records that replicas write into it.

Needs what the services need, unlike the other modules here; the client takes it from its caller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from shared.errors import InvalidInput, NotFound, SoftPromptError, Unavailable
from shared.names import PromptReference
from shared.process.call_pool import OPEN_SECONDS, CallPool
from shared.store import PromptStore, ReplicaRecord, StoreWatcher
from shared.store.open import REQUEST_SECONDS, open_existing
from softprompt.routing.directory import Directory, Replica, Target

log = logging.getLogger(__name__)

FLEET_SECONDS = 1.0
"""Time between two reads of the records. A replica that is gone is noticed earlier, by its connection."""


class StoreDirectory(Directory):
    """Follows a store like a replica, with two requests a poll, in one event loop. Stays as it is while the store is
    unavailable.
    """

    def __init__(self, store: PromptStore, poll_seconds: float = 0.0, pool: CallPool | None = None) -> None:
        """`poll_seconds` 0: the store's default."""
        self._store = store
        self._pool = pool or CallPool("prompt_store", max_threads=2)
        self._watcher = StoreWatcher(store, poll_seconds=poll_seconds or None, pool=self._pool)
        self._fleet_seconds = max(FLEET_SECONDS, store.poll_seconds)
        self._replicas: tuple[Replica, ...] = ()
        self._problem = ""
        self._changed: Callable[[], object] = lambda: None
        self._reading: asyncio.Task[None] | None = None

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The live replicas, one for each address: the one that started last."""
        return self._replicas

    @property
    def revision(self) -> int:
        """The store's revision that was read last."""
        return self._store.index().revision

    def resolve(self, reference: str, routing_key: str) -> Target | None:
        try:
            record = self._store.index().resolve(PromptReference.parse(reference), routing_key)
        except (InvalidInput, NotFound):
            return None
        return Target(record.name, record.summary.base_model_fingerprint, record.summary.base_model)

    def is_split(self, reference: str) -> bool:
        try:
            parsed = PromptReference.parse(reference)
        except InvalidInput:
            return False
        prompt = self._store.index().prompts.get(parsed.prompt)
        alias = prompt.aliases.get(parsed.alias or "") if prompt else None
        return alias is not None and len(alias.targets) > 1

    def base_model_of(self, fingerprint: str) -> str:
        summaries = (version.summary for version in self._store.index().versions())
        return next((one.base_model for one in summaries if one.base_model_fingerprint == fingerprint), "")

    async def catch_up(self) -> None:
        await self._watcher.catch_up()

    async def find_replicas(self) -> None:
        if self._reading is None or self._reading.done():  # calls that fail together read once
            self._reading = asyncio.create_task(self._read_records(), name="read the replicas' records")
        await asyncio.wait({self._reading})

    async def run(self, changed: Callable[[], object] = lambda: None) -> None:
        """Follow the store until cancelled, then close it. `changed` is called after each read of the records."""
        self._changed = changed
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                group.create_task(self._list())
        finally:
            if self._reading is not None:
                self._reading.cancel()
                await asyncio.wait({self._reading})
            self._pool.close()
            self._store.close()

    async def _follow(self) -> None:
        while True:
            await self._watcher.poll()
            await self._watcher.pause()

    async def _list(self) -> None:
        while True:
            await self.find_replicas()
            await asyncio.sleep(self._fleet_seconds)

    async def _read_records(self) -> None:
        try:
            records = await self._pool.call(self._store.list_replicas)
        except SoftPromptError as error:
            if error.message != self._problem:
                log.warning("the replicas' records can't be read: %s", error.message)
            self._problem = error.message
        else:
            self._problem, self._replicas = "", _replicas(records)
            self._changed()


async def open_directory(url: str) -> StoreDirectory:
    """The directory of the store at `url`. Raises InvalidInput, and Unavailable also where there is no store (yet)."""
    pool = CallPool("prompt_store", max_threads=2, timeout_seconds=REQUEST_SECONDS)
    try:
        store = await pool.call_within(OPEN_SECONDS, lambda: open_existing(url))
    except NotFound:
        pool.close()
        raise Unavailable(
            f"there is no prompt store at {url}: check the address, and start the trainer, which creates the store"
        ) from None
    return StoreDirectory(store, pool=pool)


def _replicas(records: list[ReplicaRecord]) -> tuple[Replica, ...]:
    newest = {record.address: record for record in sorted(records, key=lambda record: record.started_at)}
    return tuple(
        Replica(record.id, address, record.base_model, record.base_model_fingerprint, record.waiting)
        for address, record in newest.items()
        if address
    )
