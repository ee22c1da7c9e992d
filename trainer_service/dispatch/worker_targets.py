"""How many workers each base model should have, by who waits for it. Pure: no clock, no I/O.

A tenant's weight is divided among the base models that its jobs wait for, in proportion to how many wait and how long.
What a base model's tenants bring together is its share of the workers, up to what its jobs can fill. First, every base
model that somebody waits for gets one worker, as long as there are some, in the order of the tenants' fair queue: a
small backlog isn't starved by a large one.

Jobs that must be alone compete beside the ordinary jobs of their base model as if they were for a model of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer_service.jobs.fair_queue import QUANTUM_SECONDS

AGE_FLOOR_SECONDS = 600.0
"""Ages within a tenant are compared as if all had waited that much longer: a new backlog counts less than an old one,
but it counts.
"""


@dataclass(frozen=True)
class Lane:
    """What shares workers: the ordinary jobs of one base model, or those that must each be alone."""

    base_model: str
    exclusive: bool = False


@dataclass(frozen=True)
class Backlog:
    """Jobs of one tenant that wait in one lane."""

    lane: Lane
    num_jobs: int
    first_key: float
    """Queue key of the first of them."""
    mean_key: float
    """Mean of their queue keys; seconds, less is older."""
    tenant: str = ""
    weight: float = 1.0
    start: float = 0.0
    """Start tag of the tenant: less goes first (`fair_queue`)."""


@dataclass
class _Demand:
    most: int
    """Workers that the lane's jobs can fill."""
    score: float = 0.0
    turn: tuple[float, float] = field(default=(math.inf, math.inf))
    """The least gets its first worker first."""


def targets(
    backlogs: Sequence[Backlog], most: Mapping[Lane, int], *, max_workers: int, jobs_per_worker: int
) -> dict[Lane, int]:
    """Workers by lane, the lane that goes first first; lanes that nobody waits for are left out. `most`: what a lane's
    jobs can fill.
    """
    demands = _demands(backlogs, most, jobs_per_worker)
    lanes = sorted(demands, key=lambda lane: (demands[lane].turn, not lane.exclusive, lane.base_model))
    found = {lane: int(index < max_workers) for index, lane in enumerate(lanes)}
    left = max_workers - sum(found.values())
    while left > 0:
        open_lanes = [lane for lane in lanes if found[lane] < demands[lane].most]
        if not open_lanes:
            break
        # The one that is furthest below its share, by highest averages (Sainte-Lague): each of n lanes is within one
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
    for its in by_tenant.values():
        newest = max(backlog.mean_key for backlog in its)
        sizes = [backlog.num_jobs * (AGE_FLOOR_SECONDS + newest - backlog.mean_key) for backlog in its]
        for backlog, size in zip(its, sizes, strict=True):
            demand = demands.setdefault(backlog.lane, _Demand(max(1, most.get(backlog.lane, 1))))
            demand.score += backlog.weight * size / sum(sizes)
        for number, backlog in enumerate(sorted(its, key=lambda backlog: backlog.first_key)):
            # Each further lane of a tenant comes later by what filling a worker of the one before would have been
            # charged.
            tag = backlog.start + number * jobs_per_worker * QUANTUM_SECONDS / backlog.weight
            demands[backlog.lane].turn = min(demands[backlog.lane].turn, (tag, backlog.first_key))
    return demands
