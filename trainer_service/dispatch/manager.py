"""Tuning jobs for the RPC handlers: create, read, watch and change. Uses the store, the dispatcher and the publisher.

For a caller who is limited to some prompts, jobs of other prompts do not exist.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from shared.caller import Tenant, current_caller
from shared.errors import InvalidInput, Unavailable
from shared.model.models_file import ModelsFile
from shared.names import MAX_REQUEST_ID_CHARS
from shared.process.daemon_thread import close_within
from shared.process.waits import wait_at_most
from shared.store.store import PromptStore
from shared.trace_context import current_traceparent
from trainer_service.cluster.interface import WorkerPool
from trainer_service.datasets.ledger import DatasetLedger
from trainer_service.dispatch.dispatcher import Dispatcher
from trainer_service.dispatch.job_estimate import training_seconds
from trainer_service.dispatch.start_times import StartTimes
from trainer_service.jobs import transitions
from trainer_service.jobs.admission import SpecAdmission
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.context import JobsContext, JobsObserver
from trainer_service.jobs.model import (
    EffectiveSpec,
    Job,
    JobCounts,
    JobEvent,
    JobFilter,
    JobPage,
    StoredSpec,
    new_job_id,
)
from trainer_service.jobs.preparation import Preparation
from trainer_service.jobs.record import Record, checked_same, queue_key, to_datetime
from trainer_service.jobs.states import LEASED_STATES, JobState
from trainer_service.jobs.store.files import JobFiles, keep_what_is_worth
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.jobs.submission import CheckedJob
from trainer_service.pools import TrainerPools
from trainer_service.publish.alias_claim import alias_revision
from trainer_service.publish.publisher import Publisher
from trainer_service.training.data.dataset_facts import Description
from trainer_service.training.events import DatasetFile
from trainer_service.training.recipe.defaults import coverage_note

log = logging.getLogger(__name__)

_EVENTS_PER_READ = 500
_ALIAS_SECONDS = 2.0
"""How long a creation waits for an unavailable prompt store."""
_OWN_NEWS_SECONDS, _OTHERS_NEWS_SECONDS = 30.0, 0.5
"""How often a watcher reads the store with one replica and with several. Changes of this replica wake it at once;
changes of other replicas don't.
"""
_LEAVE_SECONDS = 5.0
"""Minimum time for leaving the cluster, even after the grace time."""
_CLOSE_SECONDS = 2.0
"""How long `drain` waits for the job database to close."""


class JobManager:
    """The service's jobs. Construct, `await start()`, use, `await drain(grace_seconds)`. It answers requests before
    `start` too.
    """

    def __init__(
        self,
        store: JobStore,
        admission: SpecAdmission,
        dataset_file: Callable[[str], DatasetFile],
        prompt_store: PromptStore,
        pool: WorkerPool,
        config: JobsConfig,
        *,
        files: JobFiles,
        observer: JobsObserver | None = None,
        ledger: DatasetLedger | None = None,
        pools: TrainerPools | None = None,
        tenants: Callable[[], Mapping[str, Tenant]] = dict,
        models: ModelsFile | None = None,
        check_budgets: Callable[[Tenant, Connection | None], None] = lambda tenant, within: None,
        estimate_memory: Callable[[EffectiveSpec], int | None] = lambda spec: None,
    ) -> None:
        """`dataset_file(name)` finds a stored dataset. With a `ledger`, jobs may use only datasets of their own tenant.
        `tenants()` returns the current tenants of the callers file by name. `models`: limits of base models' workers.
        `check_budgets` raises Overloaded for a tenant whose budget is used up, read in the given transaction or in one
        of its own; it may block. `estimate_memory` returns the bytes that a worker needs for a job, or None if it can't
        be computed.
        """
        self._check_budgets, self._estimate_memory = check_budgets, estimate_memory
        self._ledger = ledger
        self._store, self._admission, self._pool, self._config = store, admission, pool, config
        self._prompt_store = prompt_store
        pools = pools or TrainerPools()
        preparation = Preparation(dataset_file, prompt_store, files, pools)
        self._context = JobsContext(
            store, files, preparation, config, observer or JobsObserver(), pools=pools, models=models or ModelsFile()
        )
        self._publisher = Publisher(self._context, prompt_store)
        self._dispatcher = Dispatcher(self._context, pool, self._publisher, tenants)
        self._start_times = StartTimes(self._context, self._dispatcher)

    async def start(self) -> None:
        """Joins the cluster, queues the jobs of dead replicas again, then begins to place jobs on workers."""
        await self._pool.start()
        await self._dispatcher.start()

    async def drain(self, grace_seconds: float) -> None:
        """Checkpoints running jobs, sets them to QUEUED, ends the workers, leaves the cluster and closes the store.

        Takes at most a few seconds more than the grace time.
        """
        deadline = time.monotonic() + grace_seconds
        await self._dispatcher.drain(grace_seconds)
        try:
            async with asyncio.timeout(max(_LEAVE_SECONDS, deadline - time.monotonic())):
                await self._pool.close()
        except TimeoutError:
            log.warning("leaving the cluster took too long; not waiting for it")
        self._context.close()
        await close_within(_CLOSE_SECONDS, self._store.close, "job database")

    async def abandon(self) -> None:
        """Ends without queuing jobs again, as if the process were killed: jobs stay RUNNING until their leases end."""
        await self._dispatcher.abandon()
        await self._pool.close()
        self._context.close()
        self._store.close()

    async def check(
        self,
        spec: StoredSpec,
        unstored: Mapping[str, Description] | None = None,
        request_id: str = "",
        *,
        is_shared: bool = False,
    ) -> CheckedJob:
        """The job that `create` would make or return, unstored, and how long it would train. Raises what `create`
        raises. Without a dataset in the spec, checks what does not depend on the data. `unstored`: its datasets that
        are not stored.
        """
        database = self._context.database
        if found := await self._earlier(request_id, spec.prompt if is_shared else None):
            return CheckedJob(checked_same(found, spec, request_id) if spec.dataset else None)
        if spec.dataset:
            effective = await self._admitted(spec, unstored)
        else:
            await self._check_caller(spec)
            await self._admission.check_form(spec)
        caller = current_caller()
        await database.call(self._store.check_limits, caller.name, caller.tenant.name, **self._limits())
        if not spec.dataset:
            return CheckedJob(None)
        seconds = await database.call(training_seconds, self._store.database, effective)
        memory_bytes = self._estimate_memory(effective) or self._context.memory_use.most_bytes(effective.base_model.id)
        return CheckedJob(_new_job(spec, effective, time.time()), seconds, memory_bytes)

    async def _admitted(self, spec: StoredSpec, unstored: Mapping[str, Description] | None = None) -> EffectiveSpec:
        await self._check_caller(spec)
        if self._ledger is not None:
            names = [name for name in spec.dataset_names if name not in (unstored or {})]
            await self._context.database.call(self._ledger.require, current_caller().tenant.name, names)
        return await self._admission.check(spec, unstored)

    async def _check_caller(self, spec: StoredSpec) -> None:
        """Raises InvalidInput for a priority above the tenant's maximum, Overloaded for a used-up budget."""
        tenant = current_caller().tenant
        if spec.priority > tenant.max_priority:
            reason = f"{spec.priority} is more than the largest priority of your tenant's jobs, {tenant.max_priority}"
            raise InvalidInput.of("spec.priority", reason)
        if tenant.budgets:
            await self._context.database.call(self._check_budgets, tenant, None)

    async def _earlier(self, request_id: str, of_prompt: str | None) -> Job | None:
        """The job that the caller, or for the prompt `of_prompt` any caller of the tenant, created with this id.

        Raises InvalidInput.
        """
        if len(request_id) > MAX_REQUEST_ID_CHARS or "\0" in request_id:
            raise InvalidInput.of("request_id", f"must have at most {MAX_REQUEST_ID_CHARS} characters, and no NUL")
        find, caller = self._store.find_request, current_caller()
        shared = None if of_prompt is None else (caller.tenant.name, of_prompt)
        return await self._context.database.call(find, caller.name, request_id, caller.prompts, shared)

    def _limits(self) -> dict[str, Any]:
        """The limits of a creation by the current caller, as arguments of the job store."""
        caller = current_caller()
        own, default = caller.limits.active_jobs, self._config.max_active_jobs_per_caller
        return {
            "max_queued": self._config.max_queued_jobs,
            "max_active_of_caller": default if own is None else own,
            "max_active_of_tenant": caller.tenant.limits.active_jobs,
        }

    async def create(self, spec: StoredSpec, *, request_id: str = "", is_shared: bool = False) -> Job:
        """Checks the spec and stores a QUEUED job of the current caller. Repeating a `request_id` returns the job that
        it created; with `is_shared`, also that of another caller of the tenant for the same prompt.

        Raises what `SpecAdmission.check` raises, InvalidInput for a priority above the tenant's maximum, Conflict if
        the earlier job of `request_id` has another spec, Overloaded if the queue or the tenant's part of it is full.
        """
        if found := await self._earlier(request_id, spec.prompt if is_shared else None):
            return checked_same(found, spec, request_id)
        admitted = await self._admitted(spec)
        revision = await self._alias_revision(spec)
        effective = admitted.model_copy(update={"traceparent": current_traceparent(), "alias_revision": revision})
        now, tenant = time.time(), current_caller().tenant
        job = _new_job(spec, effective, now, request_id)
        await self._context.preparation.keep_source(job)
        created = await self._context.database.call(
            self._store.create,
            Record(job, queue_key=queue_key(spec.priority, now)),
            **self._limits(),
            visible_to=current_caller().prompts,
            use_datasets=None if self._ledger is None else self._ledger.use,
            check_budgets=lambda connection: self._check_budgets(tenant, connection),
            weight=tenant.weight,
            is_shared=is_shared,
        )
        if created.id == job.id:
            fields = {"job": job.id, "prompt": spec.prompt, "base_model": effective.base_model.id}
            log.info("job created", extra={"fields": fields})
            self._context.notify(created)
            notes = [] if effective.repetition is None else list(effective.repetition.notes())
            notes.append(coverage_note(spec.hyperparameters, effective.training.hyperparameters, effective.num_train))
            if texts := [text for text in notes if text]:
                await self._context.note(job.id, *texts)
        return await self._start_times.of_one(created)

    async def get(self, job_id: str) -> Job:
        """The job, with its estimated start while it waits. Raises NotFound."""
        return await self._start_times.of_one(
            await self._context.database.call(self._store.get, job_id, current_caller().prompts)
        )

    async def list(self, filter: JobFilter, page_size: int, after: str = "") -> JobPage:
        """The page after the job `after` of the jobs that the caller may see."""
        filter = replace(filter, visible_to=current_caller().prompts)
        page = await self._context.database.call(self._store.page, filter, page_size, after)
        return replace(page, jobs=await self._start_times.of(page.jobs))

    async def watch(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """Yields the stored events after number `after`, then each new one, and ends after the event that ends the job.
        Raises NotFound.
        """
        news = self._context.changes.subscribe(job_id)
        pause = _OTHERS_NEWS_SECONDS if self._store.is_shared else _OWN_NEWS_SECONDS
        ended = False
        try:
            await self._context.database.call(self._store.state, job_id, current_caller().prompts)
            while True:
                news.clear()
                events, more, state = await self._context.database.call(
                    self._store.event_page, job_id, after, _EVENTS_PER_READ
                )
                for event in events:
                    yield event
                    after = event.number
                    if isinstance(event.payload, Job) and event.payload.state.is_final:
                        return
                if more:
                    continue
                if state is not None and state.is_final:
                    if ended:
                        return
                    ended = True  # perhaps only after the events were read: read once more for the last event
                    continue
                await wait_at_most(pause * random.uniform(0.8, 1.2), news)
        finally:
            self._context.changes.unsubscribe(job_id, news)

    async def cancel(self, job_id: str) -> Job:
        """Sets the job to CANCELLED if it isn't on a worker, else to CANCELLING. Does nothing if it is cancelled
        already; raises PreconditionFailed if it ended in another way.

        If the job was ever checkpointed, its best prompt so far is kept (`Job.keeps_best_prompt`).
        """
        job = await self._change(job_id, lambda record: transitions.cancel(record, time.time()))
        if job.state is JobState.CANCELLED:
            await self._context.pools.job_files.call(keep_what_is_worth, self._context.files, job)
        return job

    async def pause(self, job_id: str) -> Job:
        """Sets a waiting job to PAUSED at once, a running one after its current step. Raises PreconditionFailed if the
        job has ended.
        """
        return await self._change(job_id, transitions.pause)

    async def resume(self, job_id: str) -> Job:
        """Queues a paused job again. Raises PreconditionFailed if it is neither paused nor pausing."""
        return await self._change(job_id, lambda record: transitions.resume(record, time.time()))

    async def delete(self, job_id: str) -> None:
        """Removes an ended job with its events and files. Raises PreconditionFailed if it hasn't ended."""
        await self._context.database.call(self._store.delete, job_id, current_caller().prompts)
        await self._context.pools.job_files.call(self._context.files.remove, job_id)
        self._context.changes.notify(job_id)

    async def counts(self) -> JobCounts:
        """Counts the jobs that the caller may see, and the workers that run some of them."""
        caller, database = current_caller(), self._context.database
        states = await database.call(self._store.counts, caller.prompts)
        running = sum(states.get(state, 0) for state in LEASED_STATES)
        workers = self._dispatcher.workers
        if caller.is_limited_to_prompts:
            running_ids = await database.call(self._store.ids_on_workers, caller.prompts)
            workers = [worker for worker in workers if not running_ids.isdisjoint(worker.job_ids)]
        return JobCounts(queued=states.get(JobState.QUEUED, 0), running=running, num_workers=len(workers))

    async def _alias_revision(self, spec: StoredSpec) -> int | None:
        """The current revision of the job's alias; the last known one while the store is unavailable."""
        if not spec.publish.moved_alias:
            return None
        try:
            index = await self._context.pools.prompt_store.call_within(_ALIAS_SECONDS, self._prompt_store.refresh)
        except Unavailable as error:
            text = "prompt store unavailable; recording the last known revision of a job's alias: %s"
            log.warning(text, error.message)
            index = self._prompt_store.index()
        return alias_revision(index, spec.prompt, spec.publish.moved_alias)

    async def _change(self, job_id: str, move: transitions.Move) -> Job:
        """Changes the job once. An unavailable database raises at once because a caller waits for the answer."""
        after = await self._context.database.call(self._store.change, job_id, move, visible_to=current_caller().prompts)
        self._context.notify(after.job)
        return await self.get(job_id)


def _new_job(spec: StoredSpec, effective: EffectiveSpec, now: float, request_id: str = "") -> Job:
    caller = current_caller()
    return Job(
        id=new_job_id(),
        spec=spec,
        effective=effective,
        caller=caller.name,
        tenant=caller.tenant.name,
        request_id=request_id,
        create_time=to_datetime(now),
    )
