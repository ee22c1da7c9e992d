"""How many workers each base model should have, given the waiting jobs. Pure: no clock, no I/O.

A tenant's weight is divided among the base models that its jobs wait for, in proportion to their number and age. The
sum over its tenants is a base model's share of the workers, up to the number that its jobs can fill. Before that, each
base model with waiting jobs gets one worker, as long as there are enough, in the order of the tenants' fair queue: a
large backlog can't starve a small one.

Exclusive jobs are treated as if they were for a separate base model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shared.model.models_file import ModelsFile
from trainer_service.jobs.fair_queue import QUANTUM_SECONDS, QueueHead

AGE_FLOOR_SECONDS = 600.0
"""Added to all ages when the backlogs of a tenant are compared, so that a new backlog counts less than an old one but
still counts.
"""


@dataclass(frozen=True)
class Lane:
    """Jobs that share workers: either the ordinary or the exclusive jobs of one base model."""

    base_model: str
    exclusive: bool = False


def lane_of(head: QueueHead) -> Lane:
    """The lane in which the jobs wait."""
    return Lane(head.base_model, head.exclusive)


@dataclass(frozen=True)
class WorkerLimits:
    """The numbers of workers that a base model has."""

    least: int = 0
    """Workers that it keeps also without jobs."""
    most: int | None = None
    """None: only the limit of all base models together."""

    def beside(self, elsewhere: int, ahead: int = 0, own: int = 0) -> WorkerLimits:
        """The limits of one replica with `own` workers of the base model, if others have or will have `elsewhere`.

        `ahead`: workers that run on replicas ahead of this one. Only these let it stop one of the `least` workers that
        the base model keeps. If replicas behind it counted too, both sides would stop theirs; a reserved worker may
        never run.
        """
        most = None if self.most is None else max(0, self.most - elsewhere)
        return WorkerLimits(max(0, self.least - elsewhere, min(own, self.least - ahead)), most)


NO_LIMITS = WorkerLimits()


def worker_limits(
    models: ModelsFile, may_launch: Callable[[str], bool], max_workers: int, waiting: Collection[str]
) -> dict[str, WorkerLimits]:
    """The limits of the base models that have their own. One whose launches are paused keeps no workers.

    `waiting`: base models with waiting jobs. If one of them keeps no workers, all others together keep one less than
    `max_workers`: its jobs would never start.
    """
    wanted = {name: entry.workers for name, entry in models.entries.items()}
    found = {
        name: WorkerLimits(workers.least if may_launch(name) else 0, workers.most)
        for name, workers in wanted.items()
        if workers.least or workers.most is not None
    }
    others_wait = any(found.get(name, NO_LIMITS).least == 0 for name in waiting)
    for _ in range(sum(limit.least for limit in found.values()) - max_workers + others_wait):
        largest = max(found, key=lambda name: found[name].least)
        found[largest] = replace(found[largest], least=found[largest].least - 1)
    return found


@dataclass
class _Demand:
    most: int
    """Workers that the lane's jobs can fill."""
    score: float = 0.0
    turn: tuple[float, float] = field(default=(math.inf, math.inf))
    """The lane with the smallest value gets its first worker first."""


def targets(
    heads: Sequence[QueueHead],
    most: Mapping[Lane, int],
    *,
    max_workers: int,
    jobs_per_worker: int,
    limits: Mapping[str, WorkerLimits] | None = None,
) -> dict[Lane, int]:
    """Target number of workers by lane, in the order in which lanes are served; lanes without waiting jobs are left
    out. `most`: the number of workers that a lane's jobs can fill. `limits`: of base models; the lanes of one share its
    workers.

    Workers that a base model keeps without jobs are reserved for it: they are subtracted before the rest is shared.
    """
    limits = limits or {}
    demands = _demands(heads, most, jobs_per_worker)
    lanes = sorted(demands, key=lambda lane: (demands[lane].turn, not lane.exclusive, lane.base_model))
    found, of_model = dict.fromkeys(lanes, 0), Counter[str]()
    left = max_workers - sum(limit.least for limit in limits.values())

    def has_room(lane: Lane) -> bool:
        """Whether the lane's base model may have one more worker, and the workers that others keep leave one."""
        limit, number = limits.get(lane.base_model, NO_LIMITS), of_model[lane.base_model]
        return (limit.most is None or number < limit.most) and (left > 0 or number < limit.least)

    def give(lane: Lane) -> None:
        nonlocal left
        left -= of_model[lane.base_model] >= limits.get(lane.base_model, NO_LIMITS).least
        of_model[lane.base_model] += 1
        found[lane] += 1

    for lane in lanes:
        if has_room(lane):
            give(lane)
    while True:
        open_lanes = [lane for lane in lanes if found[lane] < demands[lane].most and has_room(lane)]
        if not open_lanes:
            break
        # The lane furthest below its share, by the highest-averages method of Sainte-Lague: each lane ends within one
        # worker of its share.
        give(max(open_lanes, key=lambda lane: demands[lane].score / (found[lane] + 0.5)))
    return found


def _demands(heads: Sequence[QueueHead], most: Mapping[Lane, int], jobs_per_worker: int) -> dict[Lane, _Demand]:
    by_tenant: dict[str, list[QueueHead]] = {}
    for head in heads:
        by_tenant.setdefault(head.tenant, []).append(head)
    demands: dict[Lane, _Demand] = {}
    for backlogs in by_tenant.values():
        keys = [head.queue_key if head.mean_key is None else head.mean_key for head in backlogs]
        sizes = [
            head.num_jobs * (AGE_FLOOR_SECONDS + max(keys) - key) for head, key in zip(backlogs, keys, strict=True)
        ]
        for head, size in zip(backlogs, sizes, strict=True):
            lane = lane_of(head)
            demand = demands.setdefault(lane, _Demand(max(1, most.get(lane, 1))))
            demand.score += head.weight * size / sum(sizes)
        for number, head in enumerate(sorted(backlogs, key=lambda head: head.queue_key)):
            # Each further lane of a tenant comes later by the charge for filling a worker of the previous lane.
            tag = head.start + number * jobs_per_worker * QUANTUM_SECONDS / head.weight
            demand = demands[lane_of(head)]
            demand.turn = min(demand.turn, (tag, head.queue_key))
    return demands
