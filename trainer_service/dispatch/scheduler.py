"""Plans which worker takes how many jobs, and which workers are started and stopped. Pure: no clock, no I/O.

Jobs of one base model share its workers' cohorts: a worker is filled before another one is started. The number of
workers that each base model should have follows from the waiting jobs (`worker_targets`). While `max_workers` is not
reached, workers are started. After that, base models with more workers than their target give workers up: idle and
loading ones at once; if another model is far below its target, the busy workers with the fewest jobs take no new jobs
until they are idle. A worker keeps its model for at least `settling_seconds` of its load time, so that little time is
spent on loading models.

An exclusive job gets a process that no other job has used, because a process that ran out of memory can be fragmented
or keep memory that it should have freed. A worker is launched or taken from another model for it, while the other
workers of its base model keep taking ordinary jobs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from trainer_service.dispatch.worker_targets import NO_LIMITS, Lane, WorkerLimits, lane_of, targets
from trainer_service.jobs.fair_queue import QueueHead

_LOADING_SHARE = 0.25
"""Largest share of a worker's time spent on loading its model, if the worker is given up while its model has waiting
jobs.
"""
_LARGE_LACK = 0.75
"""A base model with less than this part of its target also gets busy workers of other models; otherwise it waits for
idle ones.
"""


@dataclass(frozen=True)
class WorkerView:
    """A worker as the scheduler sees it."""

    id: str
    base_model: str
    num_jobs: int
    """Jobs on the worker."""
    ready: bool
    """Whether the base model is loaded. A loading worker counts as future room."""
    idle_seconds: float = 0.0
    """Time since its last job left; 0 while it has one."""
    fresh: bool = False
    """Whether it has never had a job."""
    exclusive: bool = False
    """Whether it has an exclusive job and so takes no second one."""
    max_jobs: int | None = None
    """Jobs that fit into its memory by measurement; None if unknown."""
    load_seconds: float = 0.0
    """Time from its launch until its model was loaded."""
    ready_seconds: float = 0.0
    """Time since its model was loaded."""

    @property
    def has_settled(self) -> bool:
        """Whether it has had its model for long enough to justify the time to load it."""
        return self.ready_seconds >= settling_seconds(self.load_seconds)


@dataclass(frozen=True)
class Claim:
    """Up to `max_jobs` waiting jobs to claim for a worker."""

    worker_id: str
    base_model: str
    max_jobs: int
    exclusive: bool = False
    """Whether to claim exclusive jobs; otherwise only ordinary jobs."""


@dataclass(frozen=True)
class Plan:
    """Decisions of one round."""

    claims: tuple[Claim, ...] = ()
    launches: tuple[str, ...] = ()
    """Base models to launch workers for, one entry per worker."""
    stops: tuple[str, ...] = ()
    """Ids of workers to stop. They have no jobs; some may still load their base model."""


@dataclass
class _LaneState:
    lane: Lane
    waiting: int = 0
    target: int = 0
    workers: list[WorkerView] = field(default_factory=list)
    reserved: set[str] = field(default_factory=set)
    """Workers that take no new jobs because another lane gets their place."""

    def unplaced(self, max_jobs_per_worker: int) -> int:
        """Waiting jobs that fit on none of the lane's workers, including those that still load."""
        return max(0, self.waiting - sum(_room(worker, self.lane, max_jobs_per_worker) for worker in self.workers))

    def lack(self, max_jobs_per_worker: int) -> int:
        """Further workers that the lane should get now."""
        per_worker = 1 if self.lane.exclusive else _places(self.workers, max_jobs_per_worker)
        return max(0, min(self.target - len(self.workers), math.ceil(self.unplaced(max_jobs_per_worker) / per_worker)))


def plan(
    heads: Sequence[QueueHead],
    workers: Sequence[WorkerView],
    *,
    max_workers: int,
    max_jobs_per_worker: int,
    idle_seconds: float,
    limits: Mapping[str, WorkerLimits] | None = None,
) -> Plan:
    """Plans one round. The next call expects that this plan's claims and launches were carried out. `limits`: of base
    models that have their own.
    """
    limits = limits or {}
    surplus = _surplus(workers, limits)
    usable = [worker for worker in workers if worker.id not in surplus]
    lanes = _lanes(heads, usable, max_workers, max_jobs_per_worker, limits)
    launches, stops = _move_workers(lanes, max_workers - len(workers), max_jobs_per_worker, limits)
    claims = [claim for state in lanes for claim in _fill(state, max_jobs_per_worker)]
    stops += [worker.id for worker in workers if worker.id in surplus and worker.num_jobs == 0]
    needed = {head.base_model for head in heads}
    left = Counter(worker.base_model for worker in workers if worker.id not in stops) + Counter(launches)
    num_free = max_workers - left.total()
    for base_model, limit in limits.items():
        for _ in range(max(0, min(limit.least - left[base_model], num_free))):
            launches.append(base_model)
            left[base_model] += 1
            num_free -= 1
    for worker in sorted(workers, key=lambda worker: -worker.idle_seconds):
        is_idle = worker.ready and worker.num_jobs == 0 and worker.id not in stops
        is_long = worker.idle_seconds > idle_seconds and worker.base_model not in needed
        if is_idle and is_long and left[worker.base_model] > limits.get(worker.base_model, NO_LIMITS).least:
            stops.append(worker.id)
            left[worker.base_model] -= 1
    return Plan(tuple(claims), tuple(launches), tuple(dict.fromkeys(stops)))


def _surplus(workers: Sequence[WorkerView], limits: Mapping[str, WorkerLimits]) -> set[str]:
    """Ids of the workers that a base model has beyond its own limit: they take no jobs, and end once they have none."""
    found = set[str]()
    for base_model, limit in limits.items():
        if limit.most is not None:
            own = [worker for worker in workers if worker.base_model == base_model]
            own.sort(key=lambda worker: (-worker.num_jobs, not worker.ready, worker.id))
            found.update(worker.id for worker in own[limit.most :])
    return found


def _lanes(
    heads: Sequence[QueueHead],
    workers: Sequence[WorkerView],
    max_workers: int,
    max_jobs_per_worker: int,
    limits: Mapping[str, WorkerLimits],
) -> list[_LaneState]:
    """The lanes with waiting jobs in the order in which they are served, then the lanes that have only workers."""
    waiting = Counter[Lane]()
    for head in heads:
        waiting[lane_of(head)] += head.num_jobs
    by_lane: dict[Lane, list[WorkerView]] = {}
    for worker in workers:
        by_lane.setdefault(Lane(worker.base_model, worker.exclusive), []).append(worker)
    most = {lane: _workers_for(lane, count, by_lane, max_jobs_per_worker) for lane, count in waiting.items()}
    wanted = targets(heads, most, max_workers=max_workers, jobs_per_worker=max_jobs_per_worker, limits=limits)
    for lane in [lane for lane in wanted if lane.exclusive]:
        _set_apart(lane, min(waiting[lane], wanted[lane] - len(by_lane.get(lane, []))), by_lane)
    order = [*wanted, *(lane for lane in by_lane if lane not in wanted)]
    return [_LaneState(lane, waiting.get(lane, 0), wanted.get(lane, 0), by_lane.get(lane, [])) for lane in order]


def _workers_for(lane: Lane, num_waiting: int, by_lane: dict[Lane, list[WorkerView]], max_jobs_per_worker: int) -> int:
    """Workers that the lane's running and waiting jobs can fill."""
    workers = by_lane.get(lane, [])
    if lane.exclusive:
        return num_waiting + len(workers)
    return math.ceil((num_waiting + sum(worker.num_jobs for worker in workers)) / _places(workers, max_jobs_per_worker))


def _set_apart(lane: Lane, count: int, by_lane: dict[Lane, list[WorkerView]]) -> None:
    """Moves up to `count` fresh workers of the base model to the lane of its exclusive jobs, ready ones first."""
    ordinary = Lane(lane.base_model)
    fresh = [worker for worker in by_lane.get(ordinary, []) if worker.fresh]
    fresh.sort(key=lambda worker: (not worker.ready, worker.id))
    chosen = {worker.id for worker in fresh[: max(0, count)]}
    if chosen:
        by_lane[lane] = by_lane.get(lane, []) + [worker for worker in by_lane[ordinary] if worker.id in chosen]
        by_lane[ordinary] = [worker for worker in by_lane[ordinary] if worker.id not in chosen]


def _move_workers(
    lanes: Sequence[_LaneState], num_free: int, max_jobs_per_worker: int, limits: Mapping[str, WorkerLimits]
) -> tuple[list[str], list[str]]:
    """Returns base models to launch and workers to stop, and reserves the busy workers that are given up.

    The lanes get one worker each in turn until no lane lacks any. A base model that has all the workers that it may
    have gives up one of its other lane.
    """
    launches, stops = list[str](), list[str]()
    num_of = Counter(worker.base_model for state in lanes for worker in state.workers)
    least = {base_model: limit.least for base_model, limit in limits.items()}
    lacks = {state.lane: state.lack(max_jobs_per_worker) for state in lanes}
    got = dict.fromkeys(lacks, 0)
    while any(lacks.values()):
        for state in lanes:
            if lacks[state.lane] == 0:
                continue
            lacks[state.lane] -= 1
            is_large = len(state.workers) + got[state.lane] < _LARGE_LACK * state.target
            got[state.lane] += 1
            base_model = state.lane.base_model
            most = limits.get(base_model, NO_LIMITS).most
            is_full = most is not None and num_of[base_model] >= most
            kept_free = sum(max(0, least[name] - num_of[name]) for name in least if name != base_model)
            if num_free > kept_free and not is_full:
                num_free -= 1
                num_of[base_model] += 1
                launches.append(base_model)
                continue
            reserved = Counter(other.lane.base_model for other in lanes for _ in other.reserved)
            donors = [
                other
                for other in lanes
                if (name := other.lane.base_model) == base_model
                or (not is_full and num_of[name] - reserved[name] > least.get(name, 0))
            ]
            if (worker := _make_way(state, donors, is_large)) is not None and worker.num_jobs == 0:
                num_of[base_model] += worker.base_model != base_model
                stops.append(worker.id)
                launches.append(base_model)
    return launches, stops


def _make_way(receiver: _LaneState, lanes: Sequence[_LaneState], is_large: bool) -> WorkerView | None:
    """Chooses a worker of another lane to replace, and reserves it. It may still have jobs."""
    candidates = [
        (worker.num_jobs, not worker.ready, worker.id, worker, state)
        for state in lanes
        if state is not receiver and len(state.workers) - len(state.reserved) > state.target
        for worker in state.workers
        if worker.id not in state.reserved and not worker.exclusive and (is_large or worker.num_jobs == 0)
        if worker.has_settled or (worker.num_jobs == 0 and state.waiting == 0)
    ]
    if not candidates:
        return None
    *_, worker, donor = min(candidates, key=lambda candidate: candidate[:3])
    donor.reserved.add(worker.id)
    return worker


def _fill(state: _LaneState, max_jobs_per_worker: int) -> Iterable[Claim]:
    """Gives jobs to the lane's workers, fullest first, so that others can become idle."""
    left, lane = state.waiting, state.lane
    usable = [worker for worker in state.workers if worker.id not in state.reserved]
    for worker in sorted(usable, key=lambda worker: (not worker.ready, -worker.num_jobs, worker.id)):
        taken = min(_room(worker, lane, max_jobs_per_worker), left)
        if taken > 0 and worker.ready:
            yield Claim(worker.id, lane.base_model, taken, lane.exclusive)
        left -= taken


def _room(worker: WorkerView, lane: Lane, max_jobs_per_worker: int) -> int:
    if worker.exclusive:
        return 0
    if lane.exclusive:
        return 1 if worker.fresh else 0
    most = max_jobs_per_worker if worker.max_jobs is None else min(max_jobs_per_worker, worker.max_jobs)
    return max(0, most - worker.num_jobs)


def _places(workers: Iterable[WorkerView], max_jobs_per_worker: int) -> int:
    """Jobs that another worker of the same base model will hold, by what was measured of the existing ones."""
    measured = [worker.max_jobs for worker in workers if worker.max_jobs is not None]
    return max(1, min(max_jobs_per_worker, max(measured, default=max_jobs_per_worker)))


def settling_seconds(load_seconds: float) -> float:
    """Minimum time that a worker keeps its model while jobs wait for the model, if loading took `load_seconds`."""
    return load_seconds * (1 / _LOADING_SHARE - 1)
