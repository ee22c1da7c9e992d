"""How many workers each base model should have, given the waiting jobs. Pure: no clock, no I/O.

A tenant's weight is divided among the base models that its jobs wait for, in proportion to their number and age. The
sum over its tenants is a base model's share of the workers, up to the number that its jobs can fill. Before that, each
base model with waiting jobs gets one worker, as long as there are enough, in the order of the tenants' fair queue: a
large backlog can't starve a small one.

Exclusive jobs are treated as if they were for a separate base model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer_service.jobs.fair_queue import QUANTUM_SECONDS

AGE_FLOOR_SECONDS = 600.0
"""Added to all ages when the backlogs of a tenant are compared, so that a new backlog counts less than an old one but
still counts.
"""


@dataclass(frozen=True)
class Lane:
    """Jobs that share workers: either the ordinary or the exclusive jobs of one base model."""

    base_model: str
    exclusive: bool = False


@dataclass(frozen=True)
class Backlog:
    """Jobs of one tenant that wait in one lane."""

    lane: Lane
    num_jobs: int
    first_key: float
    """Queue key of the first job."""
    mean_key: float
    """Mean of the queue keys, in seconds; a smaller key is older."""
    tenant: str = ""
    weight: float = 1.0
    start: float = 0.0
    """Start tag of the tenant; the smallest goes first (`jobs.fair_queue`)."""


@dataclass
class _Demand:
    most: int
    """Workers that the lane's jobs can fill."""
    score: float = 0.0
    turn: tuple[float, float] = field(default=(math.inf, math.inf))
    """The lane with the smallest value gets its first worker first."""


def targets(
    backlogs: Sequence[Backlog], most: Mapping[Lane, int], *, max_workers: int, jobs_per_worker: int
) -> dict[Lane, int]:
    """Target number of workers by lane, in the order in which lanes are served; lanes without waiting jobs are left
    out. `most`: the number of workers that a lane's jobs can fill.
    """
    demands = _demands(backlogs, most, jobs_per_worker)
    lanes = sorted(demands, key=lambda lane: (demands[lane].turn, not lane.exclusive, lane.base_model))
    found = {lane: int(index < max_workers) for index, lane in enumerate(lanes)}
    left = max_workers - sum(found.values())
    while left > 0:
        open_lanes = [lane for lane in lanes if found[lane] < demands[lane].most]
        if not open_lanes:
            break
        # The lane furthest below its share, by the highest-averages method of Sainte-Lague: each lane ends within one
        # worker of its share.
        neediest = max(open_lanes, key=lambda lane: demands[lane].score / (found[lane] + 0.5))
        found[neediest] += 1
        left -= 1
    return found


def _demands(backlogs: Sequence[Backlog], most: Mapping[Lane, int], jobs_per_worker: int) -> dict[Lane, _Demand]:
    by_tenant: dict[str, list[Backlog]] = {}
    for backlog in backlogs:
        by_tenant.setdefault(backlog.tenant, []).append(backlog)
    demands: dict[Lane, _Demand] = {}
    for tenants_backlogs in by_tenant.values():
        newest = max(backlog.mean_key for backlog in tenants_backlogs)
        sizes = [backlog.num_jobs * (AGE_FLOOR_SECONDS + newest - backlog.mean_key) for backlog in tenants_backlogs]
        for backlog, size in zip(tenants_backlogs, sizes, strict=True):
            demand = demands.setdefault(backlog.lane, _Demand(max(1, most.get(backlog.lane, 1))))
            demand.score += backlog.weight * size / sum(sizes)
        for number, backlog in enumerate(sorted(tenants_backlogs, key=lambda backlog: backlog.first_key)):
            # Each further lane of a tenant comes later by the charge for filling a worker of the previous lane.
            tag = backlog.start + number * jobs_per_worker * QUANTUM_SECONDS / backlog.weight
            demands[backlog.lane].turn = min(demands[backlog.lane].turn, (tag, backlog.first_key))
    return demands
