"""A trainer's queue and workers on a virtual clock, driven by the scheduler's `plan` and the job store's order of
claims.

Only time and jobs are simulated; all scheduling decisions come from the product's code.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer_service.dispatch.scheduler import WorkerView, plan
from trainer_service.jobs.fair_queue import Ledger, QueueHead, TenantShare, in_order, queue_clock, share_of
from trainer_service.jobs.record import queue_key

IDLE_SECONDS = 300.0


@dataclass(frozen=True)
class SimulatedJob:
    tenant: str
    base_model: str
    arrives: float
    seconds: float
    exclusive: bool = False

    @property
    def key(self) -> float:
        return queue_key(0, self.arrives)


@dataclass
class _Worker:
    id: str
    base_model: str
    launched: float
    load_seconds: float
    jobs: dict[int, float] = field(default_factory=dict)
    """Claim time of each job, by its number."""
    exclusive: bool = False
    fresh: bool = True
    idle_since: float = 0.0

    @property
    def ready_at(self) -> float:
        return self.launched + self.load_seconds

    def view(self, now: float) -> WorkerView:
        ready = self.ready_at <= now
        return WorkerView(
            id=self.id,
            base_model=self.base_model,
            num_jobs=len(self.jobs),
            ready=ready,
            idle_seconds=now - max(self.idle_since, self.ready_at) if ready and not self.jobs else 0.0,
            fresh=self.fresh,
            exclusive=self.exclusive,
            load_seconds=self.load_seconds if ready else 0.0,
            ready_seconds=max(0.0, now - self.ready_at),
        )


@dataclass
class History:
    """The events of a simulation."""

    started: dict[int, float] = field(default_factory=dict)
    """Start time of each job on a worker, by its number in the scenario."""
    held: list[tuple[float, float, str]] = field(default_factory=list)
    """Start, end and tenant of each job on a worker."""
    switches: int = 0
    """Number of workers that were stopped in favour of another base model."""
    launches: Counter[str] = field(default_factory=Counter)
    workers: list[tuple[float, Mapping[str, int]]] = field(default_factory=list)
    """Number of workers by base model, after each round that changed it."""

    def shares(self, since: float, until: float) -> dict[str, float]:
        """Each tenant's share of the worker slots' time in this window."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for begun, ended, tenant in self.held:
            seconds[tenant] += max(0.0, min(ended, until) - max(begun, since))
        total = sum(seconds.values()) or 1.0
        return {tenant: its / total for tenant, its in sorted(seconds.items())}


class Simulator:
    def __init__(
        self,
        jobs: Sequence[SimulatedJob],
        *,
        max_workers: int,
        max_jobs_per_worker: int = 8,
        weights: Mapping[str, float] | None = None,
        load_seconds: float = 30.0,
        workers: Sequence[tuple[str, Sequence[int]]] = (),
    ) -> None:
        """`workers`: the base model and the job numbers of each initial worker."""
        self._jobs, self._load_seconds = jobs, load_seconds
        self._max_workers, self._max_jobs = max_workers, max_jobs_per_worker
        self._shares = {tenant: TenantShare(tenant, weight) for tenant, weight in (weights or {}).items()}
        self._queues: dict[tuple[str, str, bool], list[tuple[float, int]]] = {}
        self._workers: dict[str, _Worker] = {}
        self._number, self._order = 0, itertools.count()
        self._events: list[tuple[float, int, str, int]] = []
        """Time, order, worker and job: an arrival has no worker, a worker that becomes ready has no job."""
        self.history = History()
        placed = {number for _, its in workers for number in its}
        self._ledger = Ledger(self._shares, [(jobs[number].tenant, 0.0) for number in sorted(placed)])
        for base_model, its in workers:
            worker = self._add_worker(base_model, -3600.0)
            for number in its:
                self._put(worker, number, 0.0)
        for number, job in enumerate(jobs):
            if number not in placed:
                self._push(job.arrives, "", number)

    def run(self, until: float = math.inf) -> History:
        """Processes events in order until there are none left or `until` is reached."""
        now = 0.0
        while self._events and self._events[0][0] <= until:
            now = self._events[0][0]
            while self._events and self._events[0][0] <= now:
                _, _, worker_id, number = heapq.heappop(self._events)
                self._happen(worker_id, number, now)
            while self._round(now):
                pass
        for worker in self._workers.values():
            for number, begun in worker.jobs.items():
                self.history.held.append((begun, min(until, now), self._jobs[number].tenant))
        return self.history

    def _happen(self, worker_id: str, number: int, now: float) -> None:
        if not worker_id:
            job = self._jobs[number]
            heapq.heappush(self._queues.setdefault((job.base_model, job.tenant, job.exclusive), []), (job.key, number))
            return
        worker = self._workers.get(worker_id)
        if worker is None or number < 0:
            return
        begun = worker.jobs.pop(number)
        worker.exclusive = False
        worker.idle_since = now
        self._ledger.leave(self._jobs[number].tenant, begun, now)
        self.history.held.append((begun, now, self._jobs[number].tenant))

    def _round(self, now: float) -> bool:
        decided = plan(
            self._heads(now),
            [worker.view(now) for worker in self._workers.values()],
            max_workers=self._max_workers,
            max_jobs_per_worker=self._max_jobs,
            idle_seconds=IDLE_SECONDS,
        )
        for id in decided.stops:
            del self._workers[id]
        claimed = 0
        for claim in decided.claims:
            for _ in range(claim.max_jobs):
                claimed += self._claim(self._workers[claim.worker_id], claim.exclusive, now)
        for base_model in decided.launches:
            self._add_worker(base_model, now)
        self.history.switches += min(len(decided.stops), len(decided.launches))
        if decided.stops or decided.launches:
            self.history.workers.append((now, Counter(worker.base_model for worker in self._workers.values())))
        return bool(decided.stops or decided.launches or claimed)

    def _heads(self, now: float) -> list[QueueHead]:
        shares = self._ledger.at(now)
        clock = queue_clock(shares)
        heads = []
        for (base_model, tenant, exclusive), queue in self._queues.items():
            share, mean = share_of(shares, tenant), sum(key for key, _ in queue) / len(queue)
            heads.append(
                QueueHead(
                    base_model, queue[0][0], len(queue), exclusive, tenant, share.weight, max(clock, share.time), mean
                )
            )
        return heads

    def _claim(self, worker: _Worker, exclusive: bool, now: float) -> bool:
        tenants = [
            tenant
            for base_model, tenant, alone in self._queues
            if (base_model, alone) == (worker.base_model, exclusive)
        ]
        if not tenants:
            return False
        tenant = in_order(self._ledger.at(now), tenants)[0]
        waiting = {other for _, other, _ in self._queues}
        queue = self._queues[worker.base_model, tenant, exclusive]
        _, number = heapq.heappop(queue)
        if not queue:
            del self._queues[worker.base_model, tenant, exclusive]
        self._ledger.claim(tenant, waiting, now, is_last=not self._queues)
        self._put(worker, number, now)
        return True

    def _put(self, worker: _Worker, number: int, now: float) -> None:
        job = self._jobs[number]
        worker.jobs[number], worker.fresh, worker.exclusive = now, False, job.exclusive
        self.history.started[number] = now
        self._push(now + job.seconds, worker.id, number)

    def _add_worker(self, base_model: str, now: float) -> _Worker:
        self._number += 1
        worker = _Worker(f"w{self._number:05}", base_model, now, self._load_seconds)
        self._workers[worker.id] = worker
        self.history.launches[base_model] += 1
        if now >= 0:
            self._push(worker.ready_at, worker.id, -1)
            self._push(worker.ready_at + 3 * worker.load_seconds, worker.id, -1)  # settled
        return worker

    def _push(self, at: float, worker_id: str, number: int) -> None:
        heapq.heappush(self._events, (at, next(self._order), worker_id, number))
