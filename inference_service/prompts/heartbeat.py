"""Reports to the fleet, through a small record in the store, which versions this replica serves and refused."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.version import Quarantine
from shared.errors import SoftPromptError
from shared.process.call_pool import CallPool
from shared.process.waits import wait_at_most
from shared.prompt.manifest import to_timestamp, utc_now
from shared.store.replicas import LoadedVersion, RefusedVersion, ReplicaDirectory, ReplicaRecord
from shared.values.base_model import BaseModelInfo

log = logging.getLogger(__name__)

_MAX_REASON_CHARS = 2000
_FAREWELL_SECONDS = 2.0
"""Time limit for removing the record when the replica stops."""
_MAX_RECENT = 256
_MAX_REPORTED = 10_000
"""Maximum number of versions in the record, the newest ones: it is written every few seconds."""


class Heartbeat:
    """Writes the record every `interval_seconds`, and immediately after a change."""

    def __init__(
        self,
        directory: ReplicaDirectory,
        registry: PromptRegistry,
        replica: str,
        base_model: BaseModelInfo,
        interval_seconds: float,
        pool: CallPool | None = None,
        address: str = "",
        queue: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """`address`: where routers reach this replica, or empty. `queue`: numbers of running and waiting requests."""
        self._pool = pool or CallPool("prompt_store_heartbeat", max_threads=2)
        self._directory, self._registry = directory, registry
        self._replica, self._base_model, self._interval_seconds = replica, base_model, interval_seconds
        self._address, self._queue = address, queue
        self._started_at = utc_now()
        self._news = asyncio.Event()
        self._failing = False

    def report_now(self) -> None:
        """Write the record now: a version was loaded or refused."""
        self._news.set()

    def record(self) -> ReplicaRecord:
        """The current record of this replica."""
        loaded, refused = list[LoadedVersion](), list[RefusedVersion]()
        decided = sorted(self._registry.decided(), key=lambda entry: entry[0].record.revision)
        for item, seconds in decided[-_MAX_REPORTED:]:
            about: dict[str, Any] = {
                "prompt": item.record.prompt,
                "version": item.record.version,
                "digest": item.record.digest,
            }
            if isinstance(item, Quarantine):
                refused.append(RefusedVersion(**about, reason=f"{item.reason}: {item.message}"[:_MAX_REASON_CHARS]))
            else:
                loaded.append(
                    LoadedVersion(**about, loaded_at=to_timestamp(item.loaded_at), publish_to_served_seconds=seconds)
                )
        running, waiting = self._queue()
        return ReplicaRecord(
            id=self._replica,
            address=self._address,
            running=running,
            waiting=waiting,
            base_model=self._base_model.id,
            base_model_fingerprint=self._base_model.fingerprint,
            revision=self._registry.index.revision,
            started_at=self._started_at,
            heartbeat_seconds=self._interval_seconds,
            loaded=tuple(loaded),
            refused=tuple(refused),
            recent=tuple(self._registry.recent(_MAX_RECENT)),
        )

    async def run(self) -> None:
        """Write the record until cancelled, then remove it."""
        try:
            while True:
                self._news.clear()
                record = self.record()
                await self._try(partial(self._directory.put, record), self._pool.timeout_seconds)
                await wait_at_most(self._interval_seconds * random.uniform(0.8, 1.0), self._news)
        finally:
            await self._try(partial(self._directory.remove, self._replica), _FAREWELL_SECONDS)

    async def _try(self, write: Callable[[], object], timeout_seconds: float) -> None:
        """Write to the store. A failure is logged once and retried later: serving doesn't depend on the record."""
        try:
            await self._pool.call_within(timeout_seconds, write)
            self._failing = False
        except SoftPromptError as error:
            if not self._failing:
                log.warning("can't write this replica's record: %s", error.message)
            self._failing = True
