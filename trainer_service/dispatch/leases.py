"""This replica's leases on the jobs it has, and those that other replicas let run out. A task of its own: no slow
worker keeps it waiting.

Leases are measured by the database's clock, so replicas needn't agree on the time. A replica that dies loses its jobs
after its lease and a quarter of one, within which the others look.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time

from shared.errors import Unavailable
from trainer_service.jobs import transitions
from trainer_service.jobs.context import JobsContext

log = logging.getLogger(__name__)

_REASON = "the trainer that had it is gone"


class Leases:
    """`await start()`, `await stop()`. On SQLite there is nobody else to take jobs from, but what a lease promises
    holds there too.
    """

    def __init__(self, context: JobsContext) -> None:
        self._context = context
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take back what died replicas left, then begin. On SQLite this process is the only one: everything leased is
        its predecessor's.
        """
        shared = self._context.store.is_shared
        await self._take_back(await self._now() if shared else math.inf)
        self._task = asyncio.create_task(self._keep(), name="dispatcher leases")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def until(self) -> float:
        """When a lease that begins now ends."""
        return await self._now() + self._context.config.lease_seconds

    async def _now(self) -> float:
        return await self._context.database.call(self._context.store.now)

    async def _keep(self) -> None:
        period_seconds = self._context.config.lease_seconds / 4
        was_away = False
        while True:
            try:
                await self._context.database.call(self._context.store.renew, self._context.owner, await self.until())
                # After an outage the others' leases have run out as this one's had: they get time to renew them, as
                # this one just did.
                if self._context.store.is_shared and not was_away:
                    await self._take_back(await self._now())
                was_away = False
                await asyncio.sleep(period_seconds)
            except Unavailable as error:
                was_away = True
                log.warning("leases can't be renewed: %s", error.message)
                await asyncio.sleep(min(period_seconds, self._context.config.tick_seconds))
            except Exception:
                log.exception("renewing leases failed")
                await asyncio.sleep(min(period_seconds, self._context.config.tick_seconds))

    async def _take_back(self, lease_before: float) -> None:
        context = self._context
        jobs = await context.database.call(
            context.store.take_back,
            lambda record: transitions.orphaned(record, time.time(), _REASON, context.config),
            lease_before=lease_before,
            except_owner=context.owner,
        )
        for job in jobs:
            log.info("took a job back: %s", _REASON, extra={"fields": {"job": job.id, "state": job.state.value}})
            context.tell(job)
