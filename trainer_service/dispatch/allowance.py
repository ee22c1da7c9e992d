"""How many workers this replica may have now: all of `max_workers` where it is the only one, else its slots
(`worker_slots`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from trainer_service.dispatch.leases import Leases
from trainer_service.dispatch.scheduler import Plan, WorkerView
from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.store import worker_slots

_PATIENCE_TICKS = 5.0
"""A replica lacks workers for that many ticks before another one ends an idle one for it, or before it takes more than
an equal part: until then another replica may place the jobs, or take its own part.
"""


class Allowance:
    def __init__(self, context: JobsContext, leases: Leases) -> None:
        self._context, self._leases = context, leases
        self._valid_until = float("inf")
        self._lack, self._others_lack = _Lasting(), _Lasting()

    async def plan(
        self, plan_for: Callable[[Sequence[WorkerView], int], Plan], views: Sequence[WorkerView], num_workers: int
    ) -> Plan:
        """What `plan_for(workers, max_workers)` decides with this replica's part of the workers.

        `num_workers` counts those that have not ended, `views` those that may get jobs. Beyond its part, workers get no
        jobs, and end when they have none. One that has nothing to do ends while another replica has lacked one for a
        while.
        """
        context, most = self._context, self._context.config.max_workers
        best = plan_for(views, most)
        if not context.store.is_shared:
            return best
        wanted = min(most, max(num_workers, len(views) - len(best.stops) + len(best.launches)))
        asked_at = time.monotonic()
        slots = await self._share(wanted)
        self._valid_until = asked_at + context.config.lease_seconds
        self._lack.note(slots.granted < wanted)
        self._others_lack.note(slots.others_lack)
        ordered = sorted(views, key=lambda view: (-view.num_jobs, not view.ready, view.id))
        kept, surplus = ordered[: slots.granted], ordered[slots.granted :]
        decided = plan_for(kept, slots.granted)
        stops = [*decided.stops, *(view.id for view in surplus if view.num_jobs == 0)]
        if not decided.launches and self._others_lack.seconds > self._patience_seconds:
            needed = {claim.worker_id for claim in decided.claims} | set(decided.stops)
            stops += [view.id for view in kept if view.num_jobs == 0 and view.id not in needed][:1]
        return Plan(decided.claims, decided.launches, tuple(stops))

    @property
    def is_valid(self) -> bool:
        """False when so much time has passed since the last plan that the slots may be others' by now."""
        return time.monotonic() < self._valid_until

    async def release(self) -> None:
        """Once no worker is left."""
        if self._context.store.is_shared:
            await self._context.database.call(worker_slots.release, self._context.store.database, self._context.owner)

    async def _share(self, wanted: int) -> worker_slots.Slots:
        context = self._context
        return await context.database.call(
            worker_slots.share,
            context.store.database,
            context.owner,
            wanted,
            max_workers=context.config.max_workers,
            lease_until=await self._leases.until(),
            beyond_part=self._lack.seconds > self._patience_seconds,
        )

    @property
    def _patience_seconds(self) -> float:
        return _PATIENCE_TICKS * self._context.config.tick_seconds


class _Lasting:
    """For how long something has been so at every look."""

    def __init__(self) -> None:
        self._since: float | None = None

    def note(self, holds: bool) -> None:
        self._since = (self._since or time.monotonic()) if holds else None

    @property
    def seconds(self) -> float:
        return 0.0 if self._since is None else time.monotonic() - self._since
