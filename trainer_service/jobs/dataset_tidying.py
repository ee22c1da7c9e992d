"""Removes datasets that nobody needs any more, now and then while the trainer runs."""

from __future__ import annotations

import asyncio
import logging
import random

from shared.errors import SoftPromptError
from shared.outside import CallPool
from trainer_service.jobs.datasets import DatasetStore
from trainer_service.jobs.store import JobStore

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 3600.0


class DatasetTidying:
    """`run` until cancelled. Replicas that share the directory each do it; they don't have to know of each other."""

    def __init__(self, datasets: DatasetStore, jobs: JobStore, unused_seconds: float) -> None:
        self._datasets, self._jobs, self._unused_seconds = datasets, jobs, unused_seconds
        self._pool = CallPool("dataset_tidying", max_threads=1, timeout_seconds=_PERIOD_SECONDS)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_SECONDS * random.uniform(0.5, 1.5))
            await self.tidy()

    async def tidy(self) -> None:
        """One round. What is away now is tried again in the next one."""
        try:
            removed = await self._pool.call(self._datasets.remove_unused, self._jobs.uses_dataset, self._unused_seconds)
        except (SoftPromptError, OSError) as error:
            log.warning("unused datasets could not be removed: %s", error)
            return
        if removed:
            log.info("unused datasets removed", extra={"fields": {"datasets": len(removed)}})
