"""The loop that assigns jobs: claims waiting jobs, starts and stops workers, applies requests to running jobs.

Each round reads the store again, so it doesn't matter which replica took a request or what a crashed predecessor knew.
A round waits only for the job database, and up to `_END_SECONDS` for a worker that is replaced. All other calls to
workers are background tasks, and a separate task renews the leases.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from shared import invariants
from shared.caller import Tenant
from shared.errors import Unavailable
from shared.invariants import Invariant
from shared.process.waits import wait_at_most
from shared.values.results import TuningError
from trainer_service.cluster.interface import WorkerPool
from trainer_service.cluster.worker_state import WorkerEnd
from trainer_service.dispatch.allowance import Allowance
from trainer_service.dispatch.background_tasks import BackgroundTasks
from trainer_service.dispatch.launches import Launches
from trainer_service.dispatch.leases import Leases
from trainer_service.dispatch.scheduler import Claim, Plan, WorkerView, plan
from trainer_service.dispatch.supervisor import WorkerSupervisor
from trainer_service.dispatch.waiting_notes import WaitingNotes
from trainer_service.dispatch.worker_targets import worker_limits
from trainer_service.jobs import transitions
from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.model import Job
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.job_store import Holding, StaleAttempt
from trainer_service.publish.publisher import Publisher

log = logging.getLogger(__name__)

_LEAST_PAUSE_SECONDS = 0.01
_NO_WORKER = "no worker has it"
_END_SECONDS = 5.0
"""How long the launch of a replacement waits for the old worker to end. A cluster that sees both at once might add a
node.
"""
_LONGEST_REASON = 1000
"""Characters of an error message."""
_FAIL_AT_ONCE = 200
"""Jobs of a broken base model that fail in one transaction."""
_LAST_SHARE, _LAST_SECONDS = 0.25, 10.0
"""Time for ending workers and requeuing their jobs: this share of the grace time, but at most that many seconds."""


class Dispatcher:
    """Runs the workers of this trainer replica. It makes no decisions: `scheduler` plans, `supervisor` follows each
    worker, `publisher` takes trained jobs over.
    """

    def __init__(
        self,
        context: JobsContext,
        pool: WorkerPool,
        publisher: Publisher,
        tenants: Callable[[], Mapping[str, Tenant]] = dict,
    ) -> None:
        """`tenants()` returns the tenants that are configured now, by name."""
        self._context, self._pool, self._publisher, self._tenants = context, pool, publisher, tenants
        self._supervisors: dict[str, WorkerSupervisor] = {}
        self._numbers = itertools.count(1)
        self._task: asyncio.Task[None] | None = None
        self._leases = Leases(context)
        self._allowance = Allowance(context, self._leases)
        self._background = BackgroundTasks()
        self._waiting_notes = WaitingNotes(context)
        self._draining = False
        self._launches = Launches(context.config)
        self._broken: set[str] = set()
        """Base models that can't be loaded and whose waiting jobs have not failed yet."""
        self._weights: Mapping[str, float] = {}

    @property
    def workers(self) -> Collection[WorkerSupervisor]:
        """This replica's workers, including those that still load or are being stopped."""
        return self._supervisors.values()

    def launch_seconds(self, base_model: str) -> float:
        """How long a job for this base model waits until a new worker is ready; 0 if one is ready already."""
        if any(worker.was_ready and worker.base_model == base_model for worker in self.workers):
            return 0.0
        return self._launches.seconds(base_model)

    def may_launch(self, base_model: str) -> bool:
        """False while launches for the base model are paused after a failure and it has no worker. A failing model then
        takes no other model's place and spends no time on repeated starts.
        """
        return self._launches.may_try(base_model) or any(worker.base_model == base_model for worker in self.workers)

    async def start(self) -> None:
        """Queues the jobs of dead replicas again, then starts the loop."""
        context = self._context
        await self._leases.start()
        try:
            await context.pools.job_files.call(context.files.remove_ended, context.store.ids_with_files)
        except Unavailable as error:
            log.warning("files of ended jobs stay until the next start: %s", error.message)
        self._task = asyncio.create_task(self._run(), name="dispatcher")

    async def drain(self, grace_seconds: float) -> None:
        """Checkpoints running jobs, queues them again and ends all workers.

        Takes at most the grace time. Jobs of a worker that doesn't answer resume from an older checkpoint; jobs that
        could not be queued again in time move when their leases expire.
        """
        self._draining = True
        deadline = time.monotonic() + grace_seconds
        try:
            async with asyncio.timeout(grace_seconds):
                if self._task is not None:
                    self._task.cancel()
                    await asyncio.gather(self._task, return_exceptions=True)
                await self._leave(deadline, min(_LAST_SHARE * grace_seconds, _LAST_SECONDS))
        except TimeoutError:
            log.warning("the grace time is over; the remaining jobs move when their leases expire")
        except Unavailable as error:
            log.warning("jobs could not be requeued; replicas take them when their leases expire: %s", error.message)
        finally:
            self._background.cancel()
            await self._leases.stop()

    async def abandon(self) -> None:
        """Stops at once and writes nothing more to the store, as if the process were killed."""
        tasks = [*self._background.cancel(), *self._publisher.abandon()]
        for supervisor in self._supervisors.values():
            tasks += supervisor.abandon()
        if self._task is not None:
            self._task.cancel()
            tasks.append(self._task)
        await asyncio.gather(*tasks, self._leases.stop(), return_exceptions=True)

    async def _leave(self, deadline: float, last_seconds: float) -> None:
        """Stops the jobs and waits for their checkpoints. The last `last_seconds` before the deadline are for ending
        workers and requeuing the remaining jobs.
        """
        stopped_by = deadline - last_seconds
        closing = asyncio.create_task(self._publisher.close(stopped_by - time.monotonic()))
        for supervisor in self._supervisors.values():
            for job_id, attempt in supervisor.attempts.items():
                self._stop(supervisor, job_id, attempt)
        while time.monotonic() < stopped_by and any(supervisor.job_ids for supervisor in self._supervisors.values()):
            self._context.wake_dispatcher.clear()
            await wait_at_most(max(0.01, min(1.0, stopped_by - time.monotonic())), self._context.wake_dispatcher)
        ends = [(supervisor, WorkerEnd.DRAINED) for supervisor in self._supervisors.values()]
        await self._end(ends, deadline - last_seconds / 2 - time.monotonic())
        if not self._supervisors:
            await self._allowance.release()
        publishing = await closing
        for holding in await self._context.database.call(self._context.store.holdings, self._context.owner):
            if holding.job_id not in publishing:
                await self._move(holding, lambda record: transitions.left_worker(record, time.time()))

    async def _run(self) -> None:
        while True:
            self._context.wake_dispatcher.clear()
            begun = time.monotonic()
            try:
                await self._round()
            except Unavailable as error:
                log.warning("the dispatcher is waiting: %s", error.message)
                await asyncio.sleep(self._context.config.tick_seconds)
            except Exception:
                log.exception("a dispatcher round failed")
                await asyncio.sleep(self._context.config.tick_seconds)
            # The pause lets one round handle many changes, and leaves at least as much time to other tasks as the round
            # took.
            took = time.monotonic() - begun
            await asyncio.sleep(_LEAST_PAUSE_SECONDS + min(took, self._context.config.tick_seconds))
            await wait_at_most(self._context.config.tick_seconds, self._context.wake_dispatcher)

    async def _round(self) -> None:
        context = self._context
        look = await context.database.call(context.store.look, context.owner, time.time())
        await self._apply(look.holdings)
        if look.any_past_deadline:
            await self._expire()
        if look.any_trained:
            await self._claim_trained()
        await self._fail_broken()
        await self._leave_nodes()
        await self._place()

    # Requests

    async def _expire(self) -> None:
        """Ends waiting jobs whose deadline has passed. Running ones leave their worker with a checkpoint, as at their
        maximum runtime.
        """
        context, now = self._context, time.time()
        move = partial(transitions.expired, now=now)
        for job in await context.database.call(context.store.expire, move, now):
            self._ended(job)

    def _ended(self, job: Job) -> None:
        self._context.notify(job)
        self._background.begin(("tidy", job.id), partial(self._context.clean, job))

    async def _apply(self, holdings: list[Holding]) -> None:
        """Makes the running jobs agree with the store."""
        held = {holding.job_id: holding for holding in holdings}
        publishing, followed, attempts = self._publisher.job_ids, set[str](), set[tuple[str, int]]()
        for supervisor in list(self._supervisors.values()):
            for job_id, attempt in supervisor.attempts.items():
                followed.add(job_id)
                invariants.check((job_id, attempt) not in attempts, Invariant.JOB_ON_ONE_WORKER, job=job_id)
                attempts.add((job_id, attempt))
                holding = held.get(job_id)
                if holding is None or holding.attempt != attempt:
                    if await self._is_lost_to_others(job_id, attempt):
                        drop = partial(supervisor.drop_attempt, job_id, attempt)
                        self._background.begin(("drop", supervisor.id, job_id, str(attempt)), drop)
                elif (
                    holding.state is JobState.CANCELLING
                    or holding.pausing
                    or supervisor.jobs.is_over_time(job_id)
                    or supervisor.is_leaving
                ):
                    self._stop(supervisor, job_id, attempt)
        for job_id, holding in held.items():
            is_known = job_id in followed or job_id in publishing or job_id in self._publisher.job_ids
            if not is_known and not self._is_followed(job_id):
                log.error("a running job had no worker; queuing it again", extra={"fields": {"job": job_id}})
                await self._lose(holding)

    async def _is_lost_to_others(self, job_id: str, attempt: int) -> bool:
        """Reads the holdings again: the job may have come to the worker, or left it, after they were read."""
        holdings = await self._context.database.call(self._context.store.holdings, self._context.owner)
        return all((holding.job_id, holding.attempt) != (job_id, attempt) for holding in holdings)

    def _stop(self, supervisor: WorkerSupervisor, job_id: str, attempt: int) -> None:
        """Asks the worker in the background to stop the job after its current step."""
        self._background.begin(("stop", supervisor.id, job_id, str(attempt)), partial(supervisor.stop_job, job_id))

    async def _end(self, ends: Sequence[tuple[WorkerSupervisor, str]], seconds: float) -> None:
        """Ends workers, each with its reason, and waits up to `seconds`. A worker that takes longer ends in the
        background and gets no more jobs.
        """
        keys = [("end", supervisor.id) for supervisor, _ in ends]
        for key, (supervisor, reason) in zip(keys, ends, strict=True):
            self._background.begin(key, partial(supervisor.end, reason))
        await self._background.wait(keys, seconds)

    def _is_followed(self, job_id: str) -> bool:
        return any(job_id in supervisor.job_ids for supervisor in self._supervisors.values())

    async def _lose(self, holding: Holding) -> None:
        config = self._context.config
        await self._move(holding, lambda record: transitions.lost(record, time.time(), _NO_WORKER, config))

    async def _move(self, holding: Holding, move: transitions.Move) -> None:
        try:
            await self._context.change(holding.job_id, move, attempt=holding.attempt)
        except StaleAttempt:
            log.info("a job changed its state meanwhile", extra={"fields": {"job": holding.job_id}})

    # Placing

    async def _claim_trained(self) -> None:
        context = self._context
        while True:
            until = self._leases.until()
            record = await context.database.call(context.store.claim_trained, context.owner, until, time.time())
            if record is None:
                return
            context.notify(record.job)
            self._publisher.begin(record)

    async def _fail_broken(self) -> None:
        """Fails the jobs that wait for a base model found to be broken. Jobs created later cause one more launch."""
        context = self._context
        for base_model in list(self._broken):
            message = f"base model {base_model!r} can't be loaded: {self._launches.why_broken(base_model)}"
            error = TuningError(code="BASE_MODEL_FAILED", message=message[:_LONGEST_REASON], field="spec.base_model")
            move = partial(transitions.failed, error=error, now=time.time())
            failed = await context.database.call(context.store.fail_waiting, base_model, move, _FAIL_AT_ONCE)
            for job in failed:
                self._ended(job)
            if len(failed) < _FAIL_AT_ONCE:
                self._broken.discard(base_model)

    async def _set_weights(self) -> None:
        """Stores the tenants' weights if they have changed since the last round."""
        weights = {tenant.name: tenant.weight for tenant in self._tenants().values()}
        if weights != self._weights:
            await self._context.database.call(self._context.store.set_weights, weights)
            self._weights = weights

    async def _leave_nodes(self) -> None:
        """Ends the workers on nodes that are about to go, once they have no job."""
        leaving = [supervisor for supervisor in self._supervisors.values() if supervisor.is_leaving]
        await self._end([(one, WorkerEnd.DRAINED) for one in leaving if not one.job_ids], _END_SECONDS)

    async def _place(self) -> None:
        context, config = self._context, self._context.config
        await self._set_weights()
        for supervisor in self._supervisors.values():
            if supervisor.was_ready:
                self._launches.succeeded(supervisor.base_model, supervisor.launch_seconds)
        heads = [
            replace(head, num_jobs=1) if self._launches.is_suspect(head.base_model) else head
            for head in await context.database.call(context.store.heads, time.time())
            if self.may_launch(head.base_model)
        ]
        views = [
            supervisor.view
            for supervisor in self._supervisors.values()
            if not (supervisor.is_leaving or self._background.is_under_way(("end", supervisor.id)))
        ]

        waiting = {head.base_model for head in heads}
        limits = worker_limits(context.models, self.may_launch, config.max_workers, waiting)

        def plan_for(workers: Sequence[WorkerView], most: int) -> Plan:
            return plan(
                heads,
                workers,
                max_workers=most,
                max_jobs_per_worker=config.max_jobs_per_worker,
                idle_seconds=config.worker_idle_seconds,
                limits=self._allowance.limits(limits),
            )

        num_of = Counter(supervisor.base_model for supervisor in self._supervisors.values())
        decided = await self._allowance.plan(plan_for, views, len(self._supervisors), limits, num_of)
        stops = [(self._supervisors[id], WorkerEnd.IDLE) for id in decided.stops if id in self._supervisors]
        await self._end(stops, _END_SECONDS)
        for claim in decided.claims:
            await self._claim(claim)
        for base_model in decided.launches if self._allowance.is_valid else ():
            self._launch(base_model)

    async def _claim(self, claim: Claim) -> None:
        context, supervisor = self._context, self._supervisors.get(claim.worker_id)
        for _ in range(claim.max_jobs):
            if supervisor is None or supervisor.id not in self._supervisors or supervisor.view.exclusive:
                return
            record = await context.database.call(
                context.store.claim,
                claim.base_model,
                context.owner,
                self._leases.until(),
                time.time(),
                exclusive=claim.exclusive,
            )
            if record is None:
                return
            supervisor.give(record)
            context.notify(record.job)

    def _launch(self, base_model: str) -> None:
        id = f"worker-{next(self._numbers)}"
        self._supervisors[id] = WorkerSupervisor(
            id, base_model, self._pool, self._context, self._publisher.begin, self._on_end
        )

    def _on_end(self, supervisor: WorkerSupervisor) -> None:
        del self._supervisors[supervisor.id]
        for task in ("stop", "drop"):
            self._background.cancel(task, supervisor.id)
        if supervisor.was_ready:
            self._launches.succeeded(supervisor.base_model, supervisor.launch_seconds)
            self._waiting_notes.forget(supervisor.base_model)
        elif not (self._draining or supervisor.was_ended):
            reason, is_models_fault = "", False
            if (loss := supervisor.loss) is not None:
                reason, is_models_fault = loss.reason, loss.base_model_failed or loss.out_of_memory
            if self._launches.failed(supervisor.base_model, reason, is_models_fault=is_models_fault):
                self._broken.add(supervisor.base_model)
            if not is_models_fault:
                add_notes = partial(self._waiting_notes.add, supervisor.base_model, supervisor.why_not_started)
                self._background.begin(("note", supervisor.base_model), add_notes)
