"""Renews this replica's leases on its jobs and takes over jobs whose leases expired at other replicas.

A separate task does this, so slow workers don't delay it. Leases use the database's clock, so replicas needn't agree on
the time. The other replicas check every quarter of a lease: a dead replica loses its jobs after at most 1.25 leases.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

from shared.errors import Unavailable
from trainer_service.jobs import transitions
from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.model import Job

log = logging.getLogger(__name__)

_REASON = "its trainer is gone"


class Leases:
    """`await start()`, `await stop()`. Leases are also renewed on SQLite, where no other replica exists."""

    def __init__(self, context: JobsContext) -> None:
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self._ahead_seconds = 0.0
        """The database's clock minus the monotonic one of this process, when an answer with its time last came."""

    async def start(self) -> None:
        """Queues the jobs of dead replicas again, as soon as the database is available, then starts to renew leases. On
        SQLite this process is the only one, so all leased jobs are those of its predecessor.
        """
        store, database = self._context.store, self._context.database
        try:
            now = await self._prompt_now()
        except Unavailable:
            await database.retry(store.now)
            # In an outage all leases expire: live replicas get time to renew theirs first.
            await asyncio.sleep(self._context.config.lease_seconds / 2 if store.is_shared else 0)
            now = self._read(await database.retry(store.now))
        await self._take_back(now if store.is_shared else math.inf, database.retry)
        self._task = asyncio.create_task(self._keep(), name="dispatcher leases")

    async def stop(self) -> None:
        """Stops renewing leases; existing leases run until they expire."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def until(self) -> float:
        """When a lease that begins now ends, by the database's clock, which was read within the last quarter of a
        lease: an answer that came late makes the lease shorter.
        """
        return time.monotonic() + self._ahead_seconds + self._context.config.lease_seconds

    def _read(self, now: float) -> float:
        self._ahead_seconds = now - time.monotonic()
        return now

    async def _prompt_now(self) -> float:
        """The database's time. Raises Unavailable also if the answer took half a lease, in which others may have
        expired.
        """
        begun = time.monotonic()
        now = self._read(await self._context.database.call(self._context.store.now))
        if time.monotonic() - begun > self._context.config.lease_seconds / 2:
            raise Unavailable("the job database took longer than half a lease to answer")
        return now

    async def _keep(self) -> None:
        period_seconds = self._context.config.lease_seconds / 4
        was_unavailable = False
        while True:
            try:
                now = await self._prompt_now()
                until = now + self._context.config.lease_seconds
                await self._context.database.call(self._context.store.renew, self._context.owner, until)
                # After an outage all replicas' leases have expired. The others get time to renew theirs, as this
                # replica just did. `now` was read before the renewal, which may have hung for longer than a lease.
                if self._context.store.is_shared and not was_unavailable:
                    await self._take_back(now, self._context.database.call)
                was_unavailable = False
                await asyncio.sleep(period_seconds)
            except Unavailable as error:
                was_unavailable = True
                log.warning("leases can't be renewed: %s", error.message)
                await asyncio.sleep(min(period_seconds, self._context.config.tick_seconds))
            except Exception:
                log.exception("renewing leases failed")
                await asyncio.sleep(min(period_seconds, self._context.config.tick_seconds))

    async def _take_back(self, lease_before: float, call: Callable[..., Awaitable[list[Job]]]) -> None:
        context = self._context
        jobs = await call(
            context.store.take_back,
            lambda record: transitions.orphaned(record, time.time(), _REASON, context.config),
            lease_before=lease_before,
            except_owner=context.owner,
        )
        for job in jobs:
            log.info("job taken over: %s", _REASON, extra={"fields": {"job": job.id, "state": job.state.value}})
            context.notify(job)
