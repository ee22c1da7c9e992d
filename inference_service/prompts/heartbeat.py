"""Tells the fleet, through a small record in the store, what this replica serves and what it refused and why."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.version import Quarantine, to_timestamp
from shared.errors import SoftPromptError
from shared.model.base_model import BaseModelInfo
from shared.process.call_pool import CallPool
from shared.prompt.manifest import utc_now
from shared.store.replicas import LoadedVersion, RefusedVersion, ReplicaDirectory, ReplicaRecord

log = logging.getLogger(__name__)

_MAX_REASON_CHARS = 2000
_FAREWELL_SECONDS = 2.0
"""A replica that stops tries for that long to take its record away."""
_MAX_RECENT = 256
_MAX_TOLD = 10_000
"""Of more versions, the newest are told: the record is written every few seconds."""


class Heartbeat:
    """Writes the record every `interval_seconds`, and at once when it has news for the fleet."""

    def __init__(
        self,
        directory: ReplicaDirectory,
        registry: PromptRegistry,
        replica: str,
        base_model: BaseModelInfo,
        interval_seconds: float,
        pool: CallPool | None = None,
    ) -> None:
        self._pool = pool or CallPool("prompt_store_heartbeat", max_threads=2)
        self._directory, self._registry = directory, registry
        self._replica, self._base_model, self._interval_seconds = replica, base_model, interval_seconds
        self._started_at = utc_now()
        self._news = asyncio.Event()
        self._failing = False

    def tell(self) -> None:
        """Something was loaded or refused: don't wait for the next turn."""
        self._news.set()

    def record(self) -> ReplicaRecord:
        loaded, refused = list[LoadedVersion](), list[RefusedVersion]()
        decided = sorted(self._registry.decided(), key=lambda told: told[0].record.revision)
        for item, seconds in decided[-_MAX_TOLD:]:
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
        return ReplicaRecord(
            id=self._replica,
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
        """Until cancelled; then the record is taken away."""
        try:
            while True:
                self._news.clear()
                record = self.record()
                await self._try(partial(self._directory.put, record), self._pool.timeout_seconds)
                try:
                    async with asyncio.timeout(self._interval_seconds * random.uniform(0.8, 1.0)):
                        await self._news.wait()
                except TimeoutError:
                    continue
        finally:
            await self._try(partial(self._directory.remove, self._replica), _FAREWELL_SECONDS)

    async def _try(self, write: Callable[[], object], timeout_seconds: float) -> None:
        """The fleet's view is a help, not a condition for serving: failures are logged once and the next turn tries
        again.
        """
        try:
            await self._pool.call_within(timeout_seconds, write)
            self._failing = False
        except SoftPromptError as error:
            if not self._failing:
                log.warning("this replica's record can't be written: %s", error.message)
            self._failing = True
