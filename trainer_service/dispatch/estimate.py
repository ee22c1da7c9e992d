"""Estimates when waiting jobs start by simulating the scheduler on the running and the waiting jobs. Pure.

A job has an estimate only if everything that it depends on is known: no start is estimated behind a job of unknown
duration. The error is as large as the difference between the jobs ahead and earlier jobs.
"""

from __future__ import annotations

import bisect
import heapq
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trainer_service.dispatch.scheduler import Claim, WorkerView, plan, settling_seconds
from trainer_service.dispatch.worker_targets import WorkerLimits
from trainer_service.jobs.fair_queue import Ledger, QueueHead, Shares, in_order, queue_clock, share_of

_MOST_WORK = 10_000
"""Workers and queues visited in all rounds, which limits an estimate to some tens of milliseconds. Jobs that start
later get no estimate.
"""


@dataclass(frozen=True)
class WaitingJob:
    """A queued job. Times are seconds since the epoch."""

    id: str
    base_model: str
    queue_key: float
    not_before: float = 0.0
    exclusive: bool = False
    done_seconds: float = 0.0
    """Time that earlier attempts spent on workers."""
    tenant: str = ""


@dataclass(frozen=True)
class RunningJob:
    """A job on a worker. Times are seconds since the epoch."""

    id: str
    base_model: str
    ends_at: float
    """Estimated end; infinite if unknown."""
    claimed_at: float
    tenant: str = ""
    exclusive: bool = False
    """Whether the job runs alone on its worker."""
    owner: str = ""
    """The trainer replica that has the job."""


@dataclass(frozen=True)
class Pace:
    """Typical durations of jobs and launches, in seconds by base model. A missing model's duration is unknown."""

    job_seconds: Mapping[str, float] = field(default_factory=dict)
    launch_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass
class BusyWorker:
    """A worker with its jobs, which the simulation adds and removes."""

    id: str
    base_model: str
    jobs: list[RunningJob] = field(default_factory=list)
    ready_at: float = 0.0
    """When its base model is loaded, in seconds since the epoch; infinite if unknown."""
    fresh: bool = False
    max_jobs: int | None = None
    load_seconds: float = 0.0

    def view(self, now: float) -> WorkerView:
        """The worker as the scheduler sees it at this time."""
        return WorkerView(
            id=self.id,
            base_model=self.base_model,
            num_jobs=len(self.jobs),
            ready=self.ready_at <= now,
            fresh=self.fresh,
            exclusive=any(job.exclusive for job in self.jobs),
            max_jobs=self.max_jobs,
            load_seconds=self.load_seconds,
            ready_seconds=max(0.0, now - self.ready_at),
        )


def typical_seconds(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians by base model: one long job among many short ones says little about the next."""
    return {base_model: statistics.median(seconds) for base_model, seconds in samples.items() if seconds}


def probable_end(since: float, reported: float | None, typical: float | None, now: float) -> float:
    """Estimated end of a job on a worker: the end that it reported, unless that is older than `since` and so belongs to
    an earlier attempt; else `typical` seconds after `since`; infinite if both are unknown.
    """
    if reported is not None and reported > since:
        return max(now, reported)
    return max(now, since + typical) if typical is not None else math.inf


class _Key(NamedTuple):
    """The jobs of one queue, which are claimed in order."""

    base_model: str
    tenant: str
    exclusive: bool


class Simulation:
    """Plays the scheduler's decisions once. It changes the given workers."""

    def __init__(
        self,
        waiting: Sequence[WaitingJob],
        replicas: Sequence[Sequence[BusyWorker]],
        pace: Pace,
        now: float,
        *,
        max_workers: int,
        max_jobs_per_worker: int,
        shares: Shares | None = None,
        limits: Mapping[str, WorkerLimits] | None = None,
    ) -> None:
        """`replicas`: the workers of each trainer replica; all replicas together have at most `max_workers`. `shares`:
        the tenants' shares, not counting the jobs on workers now. `limits`: the workers of base models that have their
        own.
        """
        self._queues: dict[_Key, list[WaitingJob]] = {}
        """Jobs that may run now, in order."""
        self._later = [(job.not_before, job.id, job) for job in waiting]
        heapq.heapify(self._later)
        self._replicas = [{worker.id: worker for worker in workers} for workers in replicas]
        running = [job for workers in replicas for worker in workers for job in worker.jobs]
        self._ledger = Ledger(shares or {}, [(job.tenant, job.claimed_at) for job in running])
        self._pace, self._now = pace, now
        self._max_workers, self._max_jobs_per_worker, self._limits = max_workers, max_jobs_per_worker, limits or {}
        self._starts: dict[str, float] = {}
        self._num_launched = 0
        self._work_left = _MOST_WORK

    def starts(self) -> dict[str, float]:
        """Estimated start of waiting jobs by id, in seconds since the epoch; jobs without an estimate are left out.
        Advances from event to event until all jobs have started or no further event is known.
        """
        self._queue_due_jobs()
        while (self._queues or self._later) and self._work_left > 0:
            while any(self._round(workers) for workers in self._replicas):
                pass
            if not self._advance():
                break
        return self._starts

    def _round(self, workers: dict[str, BusyWorker]) -> bool:
        """Plans for one replica and carries the plan out. Returns whether anything changed."""
        self._work_left -= 1 + len(workers) + len(self._queues)
        num_elsewhere = sum(map(len, self._replicas)) - len(workers)
        elsewhere = Counter(
            worker.base_model for other in self._replicas if other is not workers for worker in other.values()
        )
        decided = plan(
            self._heads(),
            [worker.view(self._now) for worker in workers.values()],
            max_workers=max(len(workers), self._max_workers - num_elsewhere),
            max_jobs_per_worker=self._max_jobs_per_worker,
            idle_seconds=math.inf,
            limits={name: limit.beside(elsewhere[name]) for name, limit in self._limits.items()},
        )
        for worker_id in decided.stops:
            del workers[worker_id]
        num_started = sum(self._claim(workers[claim.worker_id], claim) for claim in decided.claims)
        for base_model in decided.launches:
            self._num_launched += 1
            seconds = self._pace.launch_seconds.get(base_model, math.inf)
            id, ready_at = f"launched-{self._num_launched}", self._now + seconds
            workers[id] = BusyWorker(id, base_model, ready_at=ready_at, fresh=True, load_seconds=seconds)
        return (num_started > 0 or bool(decided.stops) or bool(decided.launches)) and self._work_left > 0

    def _heads(self) -> list[QueueHead]:
        shares = self._ledger.at(self._now)
        clock = queue_clock(shares)
        return [
            QueueHead(
                key.base_model,
                jobs[0].queue_key,
                len(jobs),
                key.exclusive,
                key.tenant,
                share_of(shares, key.tenant).weight,
                max(clock, share_of(shares, key.tenant).time),
            )
            for key, jobs in self._queues.items()
        ]

    def _claim(self, worker: BusyWorker, claim: Claim) -> int:
        taken = 0
        while taken < claim.max_jobs and (job := self._take(claim)) is not None:
            typical = self._pace.job_seconds.get(job.base_model)
            end = self._now + max(0.0, typical - job.done_seconds) if typical is not None else math.inf
            worker.jobs.append(RunningJob(job.id, job.base_model, end, self._now, job.tenant, job.exclusive))
            worker.fresh = False
            self._starts[job.id] = self._now
            taken += 1
        return taken

    def _take(self, claim: Claim) -> WaitingJob | None:
        """Takes a job as the job store does: the first job of the tenant whose turn it is."""
        tenants = {
            key.tenant for key in self._queues if (key.base_model, key.exclusive) == (claim.base_model, claim.exclusive)
        }
        if not tenants:
            return None
        tenant = in_order(self._ledger.at(self._now), tenants)[0]
        waiting = {key.tenant for key in self._queues}
        key = _Key(claim.base_model, tenant, claim.exclusive)
        job = self._queues[key].pop(0)
        if not self._queues[key]:
            del self._queues[key]
        self._ledger.claim(tenant, waiting, self._now, is_last=not self._queues)
        return job

    def _queue_due_jobs(self) -> None:
        """Adds the jobs whose back-off is over to their queues."""
        while self._later and self._later[0][0] <= self._now:
            _, _, job = heapq.heappop(self._later)
            queue = self._queues.setdefault(_Key(job.base_model, job.tenant, job.exclusive), [])
            bisect.insort(queue, job, key=lambda job: (job.queue_key, job.id))

    def _advance(self) -> bool:
        """Advances to the next event. Returns False if no further event is known."""
        workers = [worker for replica in self._replicas for worker in replica.values()]
        times = [job.ends_at for worker in workers for job in worker.jobs]
        times += [worker.ready_at + wait for worker in workers for wait in (0.0, settling_seconds(worker.load_seconds))]
        times += [self._later[0][0]] if self._later else []
        self._now = min((time for time in times if time > self._now), default=math.inf)
        for worker in workers:
            for job in [job for job in worker.jobs if job.ends_at <= self._now]:
                worker.jobs.remove(job)
                self._ledger.leave(job.tenant, job.claimed_at, self._now)
        self._queue_due_jobs()
        return self._now < math.inf
