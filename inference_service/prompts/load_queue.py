"""Loads versions into the registry: each version at most once at a time, and a limited number concurrently."""

from __future__ import annotations

import asyncio
import logging
import time

import torch

from inference_service.engine.engine import MAX_FAILED_STEPS
from inference_service.engine.run.bisect_failure import StepFailed
from inference_service.prompts.observer import PromptObserver
from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.version import RefusalReason, VersionKey, VersionRefused
from inference_service.prompts.version_loader import VersionLoader
from shared.caller import tenant_of_work
from shared.errors import DamagedBlob, InvalidInput, PreconditionFailed, SoftPromptError, Unavailable
from shared.fair_turns import FairSlots
from shared.store.index import VersionRecord

log = logging.getLogger(__name__)

MAX_CONCURRENT_LOADS = 4
MAX_FAULTS = 3
"""Attempts that end in an unexpected exception before the version is quarantined."""
MAX_FAILED_REPLAYS = MAX_FAILED_STEPS + 1
"""Attempts that end in a failed step of the engine before the version is quarantined.

If every step fails, the engine stops before this number is reached, and no version is quarantined.
"""
_PERMANENT = (DamagedBlob, InvalidInput, PreconditionFailed)


class VersionLoads:
    """Shared by the watcher and by requests for versions that are not loaded."""

    def __init__(self, loader: VersionLoader, registry: PromptRegistry, observer: PromptObserver) -> None:
        self._loader, self._registry, self._observer = loader, registry, observer
        self._slots = FairSlots(MAX_CONCURRENT_LOADS)
        self._running: dict[VersionKey, asyncio.Task[None]] = {}
        self._faults: dict[str, int] = {}
        """Failed attempts by digest, of versions that are neither loaded nor quarantined."""

    async def load(self, record: VersionRecord) -> None:
        """Load a version; returns when it is loaded or quarantined. Raises Unavailable if neither is possible now.

        A caller that is cancelled does not cancel the load for other callers.
        """
        key = (record.prompt, record.version)
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._load(record), name=f"load {record.name}")
            self._running[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel all loads and wait for their end."""
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _finished(self, key: VersionKey, task: asyncio.Task[None]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # retrieved, even if every caller has gone

    async def _load(self, record: VersionRecord) -> None:
        async with self._slots.taken(tenant_of_work()):
            started = time.monotonic()
            try:
                version = await self._loader.load(record)
            except VersionRefused as refusal:
                self._quarantine(record, refusal)
                return
            except Unavailable:
                self._observer.version_unavailable(record)
                raise
            except Exception as error:
                log.exception("a version could not be loaded", extra={"fields": {"version": record.name}})
                if self._is_permanent(record, error):
                    text = (
                        error.message
                        if isinstance(error, SoftPromptError)
                        else f"loading fails repeatedly ({type(error).__name__})"
                    )
                    self._quarantine(record, VersionRefused(RefusalReason.FAULT, text))
                    return
                self._observer.version_unavailable(record)
                raise Unavailable(f"{record.name} could not be loaded; see the service's log for the cause") from error
            self._faults.pop(record.digest, None)
            seconds = time.monotonic() - started
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

    def _is_permanent(self, record: VersionRecord, error: Exception) -> bool:
        """Whether to quarantine the version: for permanent errors, and after the maximum number of unknown ones."""
        if isinstance(error, _PERMANENT):
            return True
        if isinstance(error, SoftPromptError) or _is_out_of_memory(error):
            return False
        self._faults[record.digest] = faults = self._faults.get(record.digest, 0) + 1
        return faults >= (MAX_FAILED_REPLAYS if isinstance(error, StepFailed) else MAX_FAULTS)

    def _quarantine(self, record: VersionRecord, refusal: VersionRefused) -> None:
        self._faults.pop(record.digest, None)
        refused = {
            "version": record.name,
            "digest": record.digest,
            "reason": refusal.reason.value,
            "why": refusal.message,
        }
        # Several models may share a store, so prompts of other models are normal.
        level = logging.WARNING if refusal.reason is RefusalReason.BASE_MODEL else logging.ERROR
        log.log(level, "version quarantined", extra={"fields": refused})
        self._registry.quarantine(record, refusal.reason, refusal.message)
        self._observer.version_refused(record, refusal.reason)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory was short, which may be temporary. On the CPU torch raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
