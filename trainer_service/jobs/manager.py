"""Tuning jobs for the service's front: create, look, watch, change. Behind it: the store, the dispatcher, the publisher."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from shared.errors import InvalidInput
from shared.security.caller import Tenant
from shared.store.store import PromptStore
from shared.tracing import current_traceparent
from trainer_service.cluster.interface import WorkerPool
from trainer_service.jobs import moves
from trainer_service.jobs.checkpoints import DatabaseFiles, DirectoryFiles, JobFiles, keep_what_is_worth
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.context import JobsContext, JobsObserver, SilentObserver
from trainer_service.jobs.dispatcher import Dispatcher
from trainer_service.jobs.model import (
    MAX_REQUEST_ID_CHARS,
    EffectiveSpec,
    Job,
    JobCounts,
    JobEvent,
    JobFilter,
    JobPage,
    TuningSpec,
    new_job_id,
)
from trainer_service.jobs.outlook import Outlook
from trainer_service.jobs.owner import NO_OWNER, JobOwner
from trainer_service.jobs.preparation import Datasets, Preparation
from trainer_service.jobs.publisher import Publisher
from trainer_service.jobs.record import Record, queue_key, to_datetime
from trainer_service.jobs.states import LEASED_STATES, JobState
from trainer_service.jobs.store import JobStore

log = logging.getLogger(__name__)

_EVENTS_PER_READ = 500
_OWN_NEWS_SECONDS = 30.0
_OTHERS_NEWS_SECONDS = 0.5
"""A watcher is woken by changes made here; changes made by other replicas it has to look for."""


class Admission(Protocol):
    """Decides whether a spec can be trained here and fills in what it leaves open."""

    async def check(self, spec: TuningSpec) -> EffectiveSpec:
        """Raises InvalidInput naming fields, NotFound, or PreconditionFailed."""
        ...


def files_for(store: JobStore, directory: Path) -> JobFiles:
    """Checkpoints beside an SQLite database, in a directory; or in PostgreSQL, where every replica sees them."""
    return DatabaseFiles(store.database) if store.is_shared else DirectoryFiles(directory)


class JobManager:
    """The service's jobs. Construct, `await start()`, use, `await drain(grace_seconds)`. Requests are answered before `start` too."""

    def __init__(
        self,
        store: JobStore,
        admission: Admission,
        datasets: Datasets,
        prompt_store: PromptStore,
        pool: WorkerPool,
        config: JobsConfig,
        *,
        files: JobFiles,
        observer: JobsObserver | None = None,
        tenants: Callable[[], Mapping[str, Tenant]] = dict,
    ) -> None:
        """`tenants`: those of the callers file as it is now, by name."""
        self._store, self._admission, self._pool, self._config = store, admission, pool, config
        preparation = Preparation(datasets, prompt_store, files)
        self._context = JobsContext(store, files, preparation, config, observer or SilentObserver())
        self._publisher = Publisher(self._context, prompt_store)
        self._dispatcher = Dispatcher(self._context, pool, self._publisher, tenants)
        dispatcher = self._dispatcher
        self._outlook = Outlook(self._context, lambda: dispatcher.workers, dispatcher.launch_seconds, dispatcher.may_launch)

    async def start(self) -> None:
        """Join the cluster, take back what a predecessor left RUNNING, then begin to place jobs on workers."""
        await self._pool.start()
        await self._dispatcher.start()

    async def drain(self, grace_seconds: float) -> None:
        """Checkpoint running jobs, put them back to QUEUED, end the workers, leave the cluster, close the store."""
        await self._dispatcher.drain(grace_seconds)
        await self._pool.close()
        self._context.close()
        await asyncio.to_thread(self._store.close)

    async def create(self, spec: TuningSpec, *, request_id: str = "", owner: JobOwner = NO_OWNER) -> Job:
        """Check, store as QUEUED, return. Repeating a `request_id` returns the job that it made.

        Raises what `Admission.check` raises, InvalidInput for a priority above the tenant's, Conflict if that job's spec differs,
        Overloaded if the tenant's part of the queue is full.
        """
        if len(request_id) > MAX_REQUEST_ID_CHARS:
            raise InvalidInput.of("request_id", f"has {len(request_id)} characters; at most {MAX_REQUEST_ID_CHARS} are allowed")
        if found := await self._context.database.call(self._store.find_request, owner.caller, request_id):
            if found.spec == spec:
                return found
            effective = found.effective  # the store says how the two conflict
        else:
            _check_priority(spec, owner)
            admitted = await self._admission.check(spec)
            effective = admitted.model_copy(update={"traceparent": current_traceparent()})
        now = time.time()
        job = Job(
            id=new_job_id(),
            spec=spec,
            effective=effective,
            caller=owner.caller,
            tenant=owner.tenant.name,
            request_id=request_id,
            create_time=to_datetime(now),
        )
        record = Record(job, queue_key=queue_key(spec.priority, now))
        await self._context.slow.call(self._context.preparation.keep_source, job)
        created = await self._context.database.call(
            self._store.create,
            record,
            max_queued=self._config.max_queued_jobs,
            max_active_of_caller=self._config.max_active_jobs_per_caller if owner.max_active is None else owner.max_active,
            max_active_of_tenant=owner.tenant.limits.active_jobs,
            weight=owner.tenant.weight,
        )
        if created.id == job.id:
            log.info("job created", extra={"fields": {"job": job.id, "prompt": spec.prompt, "base_model": effective.base_model.id}})
            self._context.tell(created)
        return await self._outlook.of_one(created)

    async def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        return await self._outlook.of_one(await self._context.database.call(self._store.get, job_id))

    async def list(self, filter: JobFilter, page_size: int, page_token: str = "") -> JobPage:
        """Raises InvalidInput for a token that this service didn't make for this filter and order."""
        page = await self._context.database.call(self._store.page, filter, page_size, page_token)
        return replace(page, jobs=await self._outlook.of(page.jobs))

    async def watch(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """Past events after number `after`, then each as it happens; ends after the one that ended the job. Raises NotFound."""
        news = self._context.bell.subscribe(job_id)
        pause = _OTHERS_NEWS_SECONDS if self._store.is_shared else _OWN_NEWS_SECONDS
        try:
            while True:
                news.clear()
                events = await self._context.database.call(self._store.events, job_id, after, _EVENTS_PER_READ)
                for event in events:
                    yield event
                    after = event.number
                    if isinstance(event.payload, Job) and event.payload.state.is_terminal:
                        return
                if len(events) == _EVENTS_PER_READ:
                    continue
                if not events and (await self._context.database.call(self._store.get, job_id)).state.is_terminal:
                    return
                try:
                    async with asyncio.timeout(pause):
                        await news.wait()
                except TimeoutError:
                    continue
        finally:
            self._context.bell.unsubscribe(job_id, news)

    async def cancel(self, job_id: str) -> Job:
        """CANCELLED at once if it isn't on a worker, else CANCELLING. A cancelled job is fine; PreconditionFailed if it ended otherwise.

        Its best prompt so far is kept with it, if it was ever checkpointed: `Job.keeps_best_prompt`.
        """
        job = await self._change(job_id, lambda record: moves.cancel(record, time.time()))
        if job.state is JobState.CANCELLED:
            await self._context.slow.call(keep_what_is_worth, self._context.files, job)
        return job

    async def pause(self, job_id: str) -> Job:
        """PAUSED at once if it waits; a running one is PAUSED after its next step. Raises PreconditionFailed if it has ended."""
        return await self._change(job_id, moves.pause)

    async def resume(self, job_id: str) -> Job:
        """QUEUED again. Raises PreconditionFailed if it is neither paused nor pausing."""
        return await self._change(job_id, lambda record: moves.resume(record, time.time()))

    async def delete(self, job_id: str) -> None:
        """Remove an ended job with its events. Raises PreconditionFailed if it hasn't ended."""
        await self._context.database.call(self._store.delete, job_id)
        await self._context.slow.call(self._context.files.remove, job_id)
        self._context.bell.ring(job_id)

    async def counts(self) -> JobCounts:
        states = await self._context.database.call(self._store.counts)
        running = sum(states.get(state, 0) for state in LEASED_STATES)
        return JobCounts(queued=states.get(JobState.QUEUED, 0), running=running, num_workers=len(self._dispatcher.workers))

    async def _change(self, job_id: str, move: moves.Move) -> Job:
        """A caller waits for the answer: an absent database is told at once, not waited for."""
        after = await self._context.database.call(self._store.change, job_id, move)
        self._context.tell(after.job)
        return await self.get(job_id)


def _check_priority(spec: TuningSpec, owner: JobOwner) -> None:
    if spec.priority > owner.tenant.max_priority:
        reason = f"{spec.priority} is more than the largest priority of your tenant's jobs, {owner.tenant.max_priority}"
        raise InvalidInput.of("spec.priority", reason)
