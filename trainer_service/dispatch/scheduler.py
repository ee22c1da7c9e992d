"""Which worker takes how many jobs of which base model, which workers are started, which are stopped. Pure: no clock,
no I/O.

Jobs of one base model share its workers' cohorts: a worker is filled before another one is started. How many workers
each base model should have follows from who waits (`worker_targets`). While there is room, workers are started. When
all are taken, base models that have more than their target hand workers over: idle ones and those that are still
loading at once; when another model lacks much of its target, the emptiest busy ones take nothing new until they are
idle. A worker that was started a moment ago stays for a few times as long as its model took to load, so that little of
the time goes into loading models.

A job that must be alone gets a process that no other job has used, since one that ran out of memory may be fragmented
or keep memory that it should have freed. A worker is launched or handed over for it while the others of its base model
go on taking ordinary jobs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trainer_service.dispatch.worker_targets import Backlog, Lane, targets
from trainer_service.jobs.fair_queue import QueueHead

_LOADING_SHARE = 0.25
"""Of a worker's time, at most, goes into loading its model when it is handed over although its own model has jobs
waiting.
"""
_LARGE_LACK = 0.75
"""A base model that has less than this part of its target has others' busy workers make way; otherwise it waits for
idle ones.
"""


@dataclass(frozen=True)
class WorkerView:
    id: str
    base_model: str
    num_jobs: int
    """Jobs on it."""
    ready: bool
    """The base model is loaded. One that isn't counts as room to come."""
    idle_seconds: float = 0.0
    """Since its last job left; 0 while it has one."""
    fresh: bool = False
    """Has never had a job."""
    exclusive: bool = False
    """Has a job that must be alone; takes no second one."""
    max_jobs: int | None = None
    """Jobs that fit into its memory, as far as it was measured; None: not known."""
    load_seconds: float = 0.0
    """From its launch until its model was loaded."""
    ready_seconds: float = 0.0
    """Since its model was loaded."""

    @property
    def has_settled(self) -> bool:
        """Has had its model for long enough that loading it was worth while."""
        return self.ready_seconds >= settling_seconds(self.load_seconds)


@dataclass(frozen=True)
class Claim:
    worker_id: str
    base_model: str
    max_jobs: int
    exclusive: bool = False
    """A job that must be alone; otherwise jobs that need not."""


@dataclass(frozen=True)
class Plan:
    claims: tuple[Claim, ...] = ()
    launches: tuple[str, ...] = ()
    """Base models, one entry a worker."""
    stops: tuple[str, ...] = ()
    """Workers without jobs, some of which may still load their base model."""


@dataclass
class _LaneState:
    lane: Lane
    waiting: int = 0
    target: int = 0
    workers: list[WorkerView] = field(default_factory=list)
    reserved: set[str] = field(default_factory=set)
    """Workers that take nothing new, to make way for another lane."""

    def unplaced(self, max_jobs_per_worker: int) -> int:
        """Waiting jobs for which its workers have no place, also none to come."""
        return max(0, self.waiting - sum(_room(worker, self.lane, max_jobs_per_worker) for worker in self.workers))

    def lack(self, max_jobs_per_worker: int) -> int:
        """Workers that it should get now."""
        per_worker = 1 if self.lane.exclusive else _places(self.workers, max_jobs_per_worker)
        return max(0, min(self.target - len(self.workers), math.ceil(self.unplaced(max_jobs_per_worker) / per_worker)))


def plan(
    heads: Sequence[QueueHead],
    workers: Sequence[WorkerView],
    *,
    max_workers: int,
    max_jobs_per_worker: int,
    idle_seconds: float,
) -> Plan:
    """One round. Calling it again after its claims and launches were carried out gives the next."""
    lanes = _lanes(heads, workers, max_workers, max_jobs_per_worker)
    launches, stops = _move_workers(lanes, max_workers - len(workers), max_jobs_per_worker)
    claims = [claim for state in lanes for claim in _fill(state, max_jobs_per_worker)]
    needed = {head.base_model for head in heads}
    stops += [
        worker.id
        for worker in workers
        if worker.ready
        and worker.num_jobs == 0
        and worker.idle_seconds > idle_seconds
        and worker.base_model not in needed
    ]
    return Plan(tuple(claims), tuple(launches), tuple(dict.fromkeys(stops)))


def _lanes(
    heads: Sequence[QueueHead], workers: Sequence[WorkerView], max_workers: int, max_jobs_per_worker: int
) -> list[_LaneState]:
    """What waits and which workers it has, the lane that goes first first; then the lanes that have only workers."""
    backlogs = [backlog for head in heads for backlog in _backlogs(head)]
    waiting: dict[Lane, int] = {}
    for backlog in backlogs:
        waiting[backlog.lane] = waiting.get(backlog.lane, 0) + backlog.num_jobs
    its: dict[Lane, list[WorkerView]] = {}
    for worker in workers:
        its.setdefault(Lane(worker.base_model, worker.exclusive), []).append(worker)
    most = {lane: _workers_for(lane, count, its, max_jobs_per_worker) for lane, count in waiting.items()}
    wanted = targets(backlogs, most, max_workers=max_workers, jobs_per_worker=max_jobs_per_worker)
    for lane in [lane for lane in wanted if lane.exclusive]:
        _set_apart(lane, min(waiting[lane], wanted[lane] - len(its.get(lane, []))), its)
    order = [*wanted, *(lane for lane in its if lane not in wanted)]
    return [_LaneState(lane, waiting.get(lane, 0), wanted.get(lane, 0), its.get(lane, [])) for lane in order]


def _backlogs(head: QueueHead) -> Iterable[Backlog]:
    mean_key = head.queue_key if head.mean_key is None else head.mean_key
    for exclusive, count in ((False, head.num_jobs - head.exclusive), (True, int(head.exclusive))):
        if count > 0:
            yield Backlog(
                Lane(head.base_model, exclusive), count, head.queue_key, mean_key, head.tenant, head.weight, head.start
            )


def _workers_for(lane: Lane, num_waiting: int, its: dict[Lane, list[WorkerView]], max_jobs_per_worker: int) -> int:
    """Workers that the lane's jobs can fill, those on workers now and those that wait."""
    workers = its.get(lane, [])
    if lane.exclusive:
        return num_waiting + len(workers)
    return math.ceil((num_waiting + sum(worker.num_jobs for worker in workers)) / _places(workers, max_jobs_per_worker))


def _set_apart(lane: Lane, count: int, its: dict[Lane, list[WorkerView]]) -> None:
    """Keep fresh workers of the base model for its jobs that must be alone, ready ones first."""
    ordinary = Lane(lane.base_model)
    fresh = sorted(
        (worker for worker in its.get(ordinary, []) if worker.fresh), key=lambda worker: (not worker.ready, worker.id)
    )
    chosen = {worker.id for worker in fresh[: max(0, count)]}
    if chosen:
        its[lane] = its.get(lane, []) + [worker for worker in its[ordinary] if worker.id in chosen]
        its[ordinary] = [worker for worker in its[ordinary] if worker.id not in chosen]


def _move_workers(lanes: Sequence[_LaneState], num_free: int, max_jobs_per_worker: int) -> tuple[list[str], list[str]]:
    """Base models to launch and workers to stop; marks those that make way. A worker in each lane's turn, until nobody
    lacks any.
    """
    launches, stops = list[str](), list[str]()
    lacks = {state.lane: state.lack(max_jobs_per_worker) for state in lanes}
    got = dict.fromkeys(lacks, 0)
    while any(lacks.values()):
        for state in lanes:
            if lacks[state.lane] == 0:
                continue
            lacks[state.lane] -= 1
            is_large = len(state.workers) + got[state.lane] < _LARGE_LACK * state.target
            got[state.lane] += 1
            if num_free > 0:
                num_free -= 1
                launches.append(state.lane.base_model)
            elif (donor := _make_way(state, lanes, is_large)) is not None:
                stops.append(donor)
                launches.append(state.lane.base_model)
    return launches, stops


def _make_way(receiver: _LaneState, lanes: Sequence[_LaneState], is_large: bool) -> str | None:
    """A worker without jobs to replace. Where there is none, one that will be: it is marked, and None returned."""
    candidates = [
        (worker.num_jobs, not worker.ready, worker.id, state)
        for state in lanes
        if state is not receiver and len(state.workers) - len(state.reserved) > state.target
        for worker in state.workers
        if worker.id not in state.reserved and not worker.exclusive and (is_large or worker.num_jobs == 0)
        if worker.has_settled or (worker.num_jobs == 0 and state.waiting == 0)
    ]
    if not candidates:
        return None
    num_jobs, _, id, donor = min(candidates, key=lambda candidate: candidate[:3])
    donor.reserved.add(id)
    return id if num_jobs == 0 else None


def _fill(state: _LaneState, max_jobs_per_worker: int) -> Iterable[Claim]:
    """Give jobs to the lane's workers, fullest first, so that others can become idle."""
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
    """Jobs that one more worker of the same base model will hold, by what was measured of those that are there."""
    measured = [worker.max_jobs for worker in workers if worker.max_jobs is not None]
    return max(1, min(max_jobs_per_worker, max(measured, default=max_jobs_per_worker)))


def settling_seconds(load_seconds: float) -> float:
    """How long a worker keeps its model at least while jobs wait for it, if loading it took that long."""
    return load_seconds * (1 / _LOADING_SHARE - 1)
