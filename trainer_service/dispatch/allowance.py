"""How many workers this replica may have now: `max_workers` if it is the only replica, else its slots
(`jobs.store.worker_slots`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from trainer_service.dispatch.leases import Leases
from trainer_service.dispatch.scheduler import Plan, WorkerView
from trainer_service.dispatch.worker_targets import NO_LIMITS, WorkerLimits
from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.store import worker_slots

_PATIENCE_TICKS = 5.0
"""Ticks that a replica must lack workers before another replica ends an idle worker for it, or before it takes more
than an equal part. Until then, another replica may place the jobs or take its own part.
"""


class Allowance:
    """This replica's part of the workers. It limits what the scheduler plans; it doesn't start or end workers."""

    def __init__(self, context: JobsContext, leases: Leases) -> None:
        self._context, self._leases = context, leases
        self._valid_until = float("inf")
        self._lack, self._others_lack = _Lasting(), _Lasting()
        self._elsewhere: Mapping[str, int] = {}
        """Workers that other replicas have or will have, by base model that has its own limits."""
        self._ahead: Mapping[str, int] = {}
        """Workers of the replicas ahead of this one (`worker_slots.Slots`)."""
        self._own: Mapping[str, int] = {}
        self._granted: Mapping[str, int] | None = None
        """Workers that this replica may have of these base models; None: not asked in this round."""
        self._yields = False
        """Whether it has more than its part while others lack workers: a worker that it stops is not replaced."""

    def limits(self, configured: Mapping[str, WorkerLimits]) -> dict[str, WorkerLimits]:
        """This replica's part of the base models' limits, which `plan_for` has to keep."""
        found = {
            name: limit.beside(self._elsewhere.get(name, 0), self._ahead.get(name, 0), self._own.get(name, 0))
            for name, limit in configured.items()
        }
        if self._granted is not None:
            granted = self._granted
            found = {
                name: limit if limit.most is None else replace(limit, most=granted.get(name, 0))
                for name, limit in found.items()
            }
        return found

    async def plan(
        self,
        plan_for: Callable[[Sequence[WorkerView], int], Plan],
        views: Sequence[WorkerView],
        num_workers: int,
        limits: Mapping[str, WorkerLimits] | None = None,
        num_of: Mapping[str, int] | None = None,
    ) -> Plan:
        """Calls `plan_for(workers, max_workers)` with this replica's part of the workers and returns the adjusted plan.

        `num_workers` counts the workers that have not ended, `views` are those that may get jobs. Workers beyond this
        replica's part get no jobs and are stopped once they have none. If another replica has lacked workers for
        `_PATIENCE_TICKS`, the plan also stops one idle worker: a ready one without work, or one beyond this replica's
        equal part. It keeps a worker of its part that still loads: two replicas that both lack workers would otherwise
        stop each other's launches forever.

        `limits`: of base models that have their own, and `num_of` how many of the `num_workers` are theirs.
        """
        context, most, limits, num_of = self._context, self._context.config.max_workers, limits or {}, num_of or {}
        self._granted, self._own = None, num_of
        best = plan_for(views, most)
        if not context.store.is_shared:
            return best
        wanted = min(most, max(num_workers, len(views) - len(best.stops) + len(best.launches)))
        wanted = min(wanted, num_workers) if self._yields else wanted
        asked_at = time.monotonic()
        launches = Counter(best.launches)
        launches.subtract(view.base_model for view in views if view.id in best.stops)
        of_views = Counter(view.base_model for view in views)
        models = {
            name: worker_slots.OfModel(
                has := num_of.get(name, 0), max(has, of_views[name] + launches[name]), limit.most
            )
            for name, limit in limits.items()
        }
        slots = await context.database.call(
            worker_slots.share,
            context.store.database,
            context.owner,
            wanted,
            max_workers=most,
            lease_until=self._leases.until(),
            beyond_part=self._lack.seconds > self._patience_seconds,
            num_workers=num_workers,
            models=models,
        )
        self._elsewhere, self._ahead, self._granted = slots.elsewhere, slots.ahead, slots.of_models
        self._valid_until = asked_at + context.config.lease_seconds
        self._lack.note(slots.granted < wanted)
        self._others_lack.note(slots.others_lack)
        ordered = sorted(views, key=lambda view: (-view.num_jobs, not view.ready, view.id))
        kept, surplus = ordered[: slots.granted], ordered[slots.granted :]
        others_wait = self._others_lack.seconds > self._patience_seconds
        self._yields = others_wait and slots.beyond_part
        decided = plan_for(kept, len(kept) if self._yields else slots.granted)
        stops = [*decided.stops, *(view.id for view in surplus if view.num_jobs == 0)]
        if not decided.launches and others_wait:
            needed = {claim.worker_id for claim in decided.claims} | set(decided.stops)
            here = self.limits(limits)
            idle = [
                view
                for view in kept
                if view.num_jobs == 0 and view.id not in needed
                if of_views[view.base_model] > here.get(view.base_model, NO_LIMITS).least
            ]
            stops += [view.id for view in idle if view.ready or slots.beyond_part][:1]
        return Plan(decided.claims, decided.launches, tuple(stops))

    @property
    def is_valid(self) -> bool:
        """False if the last plan is so old that other replicas may have taken the slots."""
        return time.monotonic() < self._valid_until

    async def release(self) -> None:
        """Gives all slots back. To be called once no worker is left."""
        if self._context.store.is_shared:
            await self._context.database.call(worker_slots.release, self._context.store.database, self._context.owner)

    @property
    def _patience_seconds(self) -> float:
        return _PATIENCE_TICKS * self._context.config.tick_seconds


class _Lasting:
    """Measures for how long a condition has held at every check."""

    def __init__(self) -> None:
        self._since: float | None = None

    def note(self, holds: bool) -> None:
        self._since = (self._since or time.monotonic()) if holds else None

    @property
    def seconds(self) -> float:
        return 0.0 if self._since is None else time.monotonic() - self._since
