"""When waiting jobs will probably start: the scheduler's own rules, played forward over the jobs on workers and those that wait. Pure.

A start is told only where it follows from what is known. Behind a job of which nobody can say how long it takes, nothing does. It is
wrong by as much as the jobs ahead are unlike those before them.
"""

from __future__ import annotations

import bisect
import heapq
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer_service.jobs.scheduler import Claim, QueueHead, WorkerView, plan

_MOST_WORK = 10_000
"""Workers and queues looked at, over all rounds, so that a guess takes some tens of milliseconds. What starts later is not guessed at."""


@dataclass(frozen=True)
class WaitingJob:
    id: str
    base_model: str
    queue_key: float
    not_before: float = 0.0
    solo: bool = False
    done_seconds: float = 0.0
    """Spent on workers by earlier attempts."""


@dataclass(frozen=True)
class BusyWorker:
    """A worker, and when it will be what. `view` is how the scheduler sees it now."""

    view: WorkerView
    ends: Sequence[float | None] = ()
    """When each of its jobs will probably be done; None: not known."""
    ready_at: float | None = 0.0
    """When its base model is loaded; None: not known."""


@dataclass(frozen=True)
class Pace:
    """How long things take here, in seconds by base model. What isn't there isn't known."""

    job_seconds: Mapping[str, float] = field(default_factory=dict)
    launch_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass
class _Worker:
    id: str
    base_model: str
    ready_at: float
    ends: list[float]
    fresh: bool
    exclusive: bool
    max_jobs: int | None

    def view(self, now: float) -> WorkerView:
        return WorkerView(
            id=self.id,
            base_model=self.base_model,
            num_jobs=len(self.ends),
            ready=self.ready_at <= now,
            fresh=self.fresh,
            exclusive=self.exclusive,
            max_jobs=self.max_jobs,
        )


def typical_seconds(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians, since one long job among many short ones says little about the next."""
    return {base_model: statistics.median(seconds) for base_model, seconds in samples.items() if seconds}


def probable_end(since: float, told: float | None, typical: float | None, now: float) -> float | None:
    """Of a job on a worker: what its progress tells, unless that is of an earlier attempt; else as long as others took."""
    if told is not None and told > since:
        return max(now, told)
    return max(now, since + typical) if typical is not None else None


def starts(
    waiting: Sequence[WaitingJob],
    replicas: Sequence[Sequence[BusyWorker]],
    pace: Pace,
    now: float,
    *,
    max_workers: int,
    max_jobs_per_worker: int,
) -> dict[str, float]:
    """When waiting jobs will probably reach a worker, by id. Those of which that can't be said are left out.

    `replicas`: the workers of each trainer replica, each of which has at most `max_workers`.
    """
    return _Future(waiting, replicas, pace, now, max_workers, max_jobs_per_worker).play()


class _Future:
    def __init__(
        self,
        waiting: Sequence[WaitingJob],
        replicas: Sequence[Sequence[BusyWorker]],
        pace: Pace,
        now: float,
        max_workers: int,
        max_jobs_per_worker: int,
    ) -> None:
        self._queues: dict[str, list[WaitingJob]] = {}
        """By base model: what may run by now, in order."""
        self._later = [(job.not_before, job.id, job) for job in waiting]
        heapq.heapify(self._later)
        self._replicas = [{worker.view.id: _begin(worker) for worker in workers} for workers in replicas]
        self._pace, self._now = pace, now
        self._max_workers, self._max_jobs_per_worker = max_workers, max_jobs_per_worker
        self._starts: dict[str, float] = {}
        self._num_launched = 0
        self._work_left = _MOST_WORK

    def play(self) -> dict[str, float]:
        """From one event to the next, until all have started, or nothing more is known to happen."""
        self._let_in()
        while (self._queues or self._later) and self._work_left > 0:
            while any(self._round(workers) for workers in self._replicas):
                pass
            if not self._advance():
                break
        return self._starts

    def _round(self, workers: dict[str, _Worker]) -> bool:
        """What one replica's scheduler decides now, carried out. False: nothing."""
        self._work_left -= 1 + len(workers) + len(self._queues)
        decided = plan(
            self._heads(),
            [worker.view(self._now) for worker in workers.values()],
            max_workers=self._max_workers,
            max_jobs_per_worker=self._max_jobs_per_worker,
            idle_seconds=math.inf,
        )
        for worker_id in decided.stops:
            del workers[worker_id]
        num_started = sum(self._claim(workers[claim.worker_id], claim) for claim in decided.claims)
        for base_model in decided.launches:
            self._num_launched += 1
            ready_at = self._now + self._pace.launch_seconds.get(base_model, math.inf)
            id = f"launched-{self._num_launched}"
            workers[id] = _Worker(id, base_model, ready_at, [], fresh=True, exclusive=False, max_jobs=None)
        return (num_started > 0 or bool(decided.stops) or bool(decided.launches)) and self._work_left > 0

    def _heads(self) -> list[QueueHead]:
        return [QueueHead(base_model, jobs[0].queue_key, len(jobs), jobs[0].solo) for base_model, jobs in self._queues.items()]

    def _claim(self, worker: _Worker, claim: Claim) -> int:
        """Jobs that the worker really gets: one that must be alone only if it never had another."""
        taken = 0
        while taken < claim.max_jobs and not worker.exclusive:
            job = self._take(claim.base_model, fresh=worker.fresh)
            if job is None:
                break
            typical = self._pace.job_seconds.get(job.base_model)
            worker.ends.append(self._now + max(0.0, typical - job.done_seconds) if typical is not None else math.inf)
            worker.fresh, worker.exclusive = False, job.solo
            self._starts[job.id] = self._now
            taken += 1
        return taken

    def _take(self, base_model: str, *, fresh: bool) -> WaitingJob | None:
        jobs = self._queues.get(base_model, [])
        index = next((index for index, job in enumerate(jobs) if fresh or not job.solo), None)
        if index is None:
            return None
        job = jobs.pop(index)
        if not jobs:
            del self._queues[base_model]
        return job

    def _let_in(self) -> None:
        """Jobs whose back-off is over."""
        while self._later and self._later[0][0] <= self._now:
            _, _, job = heapq.heappop(self._later)
            bisect.insort(self._queues.setdefault(job.base_model, []), job, key=lambda job: (job.queue_key, job.id))

    def _advance(self) -> bool:
        """To the next thing that happens. False: nothing is known to."""
        workers = [worker for replica in self._replicas for worker in replica.values()]
        times = [end for worker in workers for end in worker.ends]
        times += [worker.ready_at for worker in workers]
        times += [self._later[0][0]] if self._later else []
        self._now = min((time for time in times if time > self._now), default=math.inf)
        for worker in workers:
            worker.ends = [end for end in worker.ends if end > self._now]
            worker.exclusive = worker.exclusive and bool(worker.ends)
        self._let_in()
        return self._now < math.inf


def _begin(worker: BusyWorker) -> _Worker:
    view = worker.view
    return _Worker(
        id=view.id,
        base_model=view.base_model,
        ready_at=math.inf if worker.ready_at is None else worker.ready_at,
        ends=[math.inf if end is None else end for end in worker.ends],
        fresh=view.fresh,
        exclusive=view.exclusive,
        max_jobs=view.max_jobs,
    )
