"""Which worker takes how many jobs of which base model, which workers are started, which are stopped. Pure: no clock, no I/O.

Jobs of one base model share its workers' cohorts: a worker is filled before another one is started. Base models compete by
their oldest waiting job (priority counts as age). Nobody starves: when all workers are taken and the oldest job needs another base
model, the emptiest worker takes nothing new until it is idle, and is then replaced. The same is done for a job that must be alone:
it gets a process that no other job has used, since one that ran out of memory may be fragmented, or keep what it should have let go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class QueueHead:
    """The jobs of one base model that may run now."""

    base_model: str
    queue_key: float
    """Of the first of them."""
    num_jobs: int
    solo: bool = False
    """The first of them needs a fresh worker of its own."""


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


@dataclass(frozen=True)
class Claim:
    worker_id: str
    base_model: str
    max_jobs: int


@dataclass(frozen=True)
class Plan:
    claims: tuple[Claim, ...] = ()
    launches: tuple[str, ...] = ()
    """Base models, one entry a worker."""
    stops: tuple[str, ...] = ()
    """Idle workers."""


@dataclass
class _Draft:
    claims: list[Claim] = field(default_factory=list)
    launches: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    reserved: set[str] = field(default_factory=set)
    """Workers that make room for another base model."""


def plan(
    heads: Sequence[QueueHead], workers: Sequence[WorkerView], *, max_workers: int, max_jobs_per_worker: int, idle_seconds: float
) -> Plan:
    """One round. Calling it again after its claims and launches were carried out gives the next."""
    draft = _Draft()
    for head in sorted(heads, key=lambda head: (head.queue_key, head.base_model)):
        left = _fill(head, workers, max_jobs_per_worker, draft)
        while left > 0:
            if len(workers) - len(draft.stops) + len(draft.launches) < max_workers:
                draft.launches.append(head.base_model)
            elif not _make_room(head, workers, draft):
                break
            left -= max_jobs_per_worker
    needed = {head.base_model for head in heads}
    for worker in workers:
        if worker.ready and worker.num_jobs == 0 and worker.idle_seconds > idle_seconds and worker.base_model not in needed:
            draft.stops.append(worker.id)
    return Plan(tuple(draft.claims), tuple(draft.launches), tuple(dict.fromkeys(draft.stops)))


def _fill(head: QueueHead, workers: Sequence[WorkerView], max_jobs_per_worker: int, draft: _Draft) -> int:
    """Give jobs to workers that have the model, fullest first, so that others can become idle. Jobs that are left without a place."""
    left = 1 if head.solo else head.num_jobs
    mine = [worker for worker in workers if worker.base_model == head.base_model and worker.id not in draft.reserved]
    for worker in sorted(mine, key=lambda worker: (not worker.ready, -worker.num_jobs, worker.id)):
        taken = min(_room(worker, head, max_jobs_per_worker), left)
        if taken > 0 and worker.ready:
            draft.claims.append(Claim(worker.id, head.base_model, taken))
        left -= max(0, taken)
    return left


def _room(worker: WorkerView, head: QueueHead, max_jobs_per_worker: int) -> int:
    if worker.exclusive:
        return 0
    if head.solo:
        return 1 if worker.fresh else 0
    most = max_jobs_per_worker if worker.max_jobs is None else min(max_jobs_per_worker, worker.max_jobs)
    return max(0, most - worker.num_jobs)


def _make_room(head: QueueHead, workers: Sequence[WorkerView], draft: _Draft) -> bool:
    """Pick a worker to make way for one that the head can use, if it has none yet. True: it was idle and is being replaced."""
    useless = [worker for worker in workers if worker.base_model != head.base_model or head.solo]
    if len(useless) < len(workers) or head.base_model in draft.launches:
        return False
    taken = draft.reserved | {claim.worker_id for claim in draft.claims} | set(draft.stops)
    others = [worker for worker in useless if worker.id not in taken]
    if not others:
        return False
    victim = min(others, key=lambda worker: (worker.num_jobs, not worker.ready, worker.id))
    draft.reserved.add(victim.id)
    if victim.num_jobs > 0 or not victim.ready:
        return False
    draft.stops.append(victim.id)
    draft.launches.append(head.base_model)
    return True


def retry_delay_seconds(failures: int, first_seconds: float, max_seconds: float) -> float:
    """Back-off after the n-th infrastructure failure (n from 1): doubles up to a bound."""
    return float(min(max_seconds, first_seconds * 2 ** min(failures - 1, 30)))
