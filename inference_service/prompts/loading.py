"""Loads versions into the registry: each at most once at a time, a few at once, whoever asks."""

from __future__ import annotations

import asyncio
import logging
import time

from inference_service.prompts.loader import VersionLoader
from inference_service.prompts.observer import PromptObserver
from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.version import RefusalReason, VersionKey, VersionRefused
from shared.errors import Unavailable
from shared.store.index import VersionRecord

log = logging.getLogger(__name__)

MAX_CONCURRENT_LOADS = 4


class VersionLoads:
    """The watcher and requests for versions that are not loaded meet here."""

    def __init__(self, loader: VersionLoader, registry: PromptRegistry, observer: PromptObserver) -> None:
        self._loader, self._registry, self._observer = loader, registry, observer
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_LOADS)
        self._running: dict[VersionKey, asyncio.Task[None]] = {}

    async def load(self, record: VersionRecord) -> None:
        """Return when the version is loaded or quarantined. Raises Unavailable if neither can be said now.

        A caller that gives up does not take the load away from others who wait for it.
        """
        key = (record.prompt, record.version)
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._load(record), name=f"load {record.name}")
            self._running[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        await asyncio.shield(task)

    async def close(self) -> None:
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _finished(self, key: VersionKey, task: asyncio.Task[None]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # retrieved, even if every caller has gone

    async def _load(self, record: VersionRecord) -> None:
        async with self._slots:
            begun = time.monotonic()
            try:
                version = await self._loader.load(record)
            except VersionRefused as refusal:
                refused = {"version": record.name, "digest": record.digest, "reason": refusal.reason.value, "why": refusal.message}
                # Several models may share a store; there, another model's prompts are everyday.
                level = logging.WARNING if refusal.reason is RefusalReason.BASE_MODEL else logging.ERROR
                log.log(level, "version quarantined", extra={"fields": refused})
                self._registry.quarantine(record, refusal.reason, refusal.message)
                self._observer.version_refused(record, refusal.reason)
                return
            except Unavailable:
                self._observer.version_unavailable(record)
                raise
            except Exception as error:
                log.exception("a version could not be loaded", extra={"fields": {"version": record.name}})
                self._observer.version_unavailable(record)
                raise Unavailable(f"{record.name} could not be loaded; the service's log says why") from error
            seconds = time.monotonic() - begun
            served = self._registry.add(version)
            self._observer.version_loaded(record, seconds, served)
            fields: dict[str, object] = {
                "version": record.name,
                "virtual_tokens": version.num_virtual_tokens,
                "load_seconds": round(seconds, 4),
            }
            if served is not None:
                fields["publish_to_served_seconds"] = round(served, 3)
            log.info("version loaded", extra={"fields": fields})
