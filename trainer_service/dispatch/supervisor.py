"""Follows one worker from its launch to its end: gives it jobs, polls its events, queues its jobs again if it is lost.

`jobs_on_worker` says what its events mean for its jobs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from shared.errors import InvalidInput, SoftPromptError, Unavailable
from shared.log import bind
from trainer_service.cluster.interface import (
    NoPlace,
    WorkerHandle,
    WorkerLost,
    WorkerPool,
    WorkerReport,
    WrongSoftware,
)
from trainer_service.cluster.worker_state import LaunchFailure, WorkerEnd, WorkerState
from trainer_service.dispatch.capacity import Capacity
from trainer_service.dispatch.jobs_on_worker import JobsOnWorker
from trainer_service.dispatch.progress import AttemptProgress
from trainer_service.dispatch.scheduler import WorkerView
from trainer_service.jobs.config import retry_delay_seconds
from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.model import Job
from trainer_service.jobs.record import Record
from trainer_service.publish.publication import Publication
from trainer_service.training.events import TrainingTask

log = logging.getLogger(__name__)

_OF_RAY = {"num_gpus", "num_cpus", "memory_bytes", "accelerator_type", "ray_resources", "ray_labels"}
"""What the models file says that Ray heeds when it places a worker."""
_BY_SETTINGS = {"num_gpus": "SOFTPROMPT_TRAINER_GPUS_PER_WORKER", "num_cpus": "SOFTPROMPT_TRAINER_CPUS_PER_WORKER"}
"""The settings that hold where the file says nothing."""


class Liveness:
    """Detects a worker that answers polls but makes no progress. `step_seconds` is the longest time that one step may
    take.

    Another thread than the step thread answers polls, so the step thread can hang unnoticed: a deadlock, a kernel that
    never ends, an unavailable file system.
    """

    def __init__(self, step_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._step_seconds, self._clock = step_seconds, clock
        self._asked_at: dict[tuple[str, int], float] = {}
        """When each pending stop was first requested, by job and attempt."""

    def asked_to_stop(self, job_id: str, attempt: int) -> None:
        """Records a stop request. Safe to repeat: the first request counts."""
        self._asked_at.setdefault((job_id, attempt), self._clock())

    def why_lost(self, report: WorkerReport) -> str:
        """Why the worker must be given up; empty if it works. Evaluate reports on arrival; their age is not tracked.
        The time to load the base model is not limited here.
        """
        self._asked_at = {
            (job, attempt): at for (job, attempt), at in self._asked_at.items() if report.attempts.get(job) == attempt
        }
        if report.ready and report.busy_seconds > self._step_seconds:
            return f"it hangs: one step has taken {report.busy_seconds:.0f} s (limit {self._step_seconds:g} s)"
        waiting_seconds = self._clock() - min(self._asked_at.values(), default=self._clock())
        if waiting_seconds > 2 * self._step_seconds:
            return f"it hangs: a job has not stopped {waiting_seconds:.0f} s after the request"
        return ""


class WorkerSupervisor:
    """One worker of this trainer replica. It is launched when the object is created.

    `on_trained(record, publication)` takes a trained job over; `on_end(self)` is called once, after the worker's jobs
    are queued again.
    """

    def __init__(
        self,
        id: str,
        base_model: str,
        pool: WorkerPool,
        context: JobsContext,
        on_trained: Callable[[Record, Publication], None],
        on_end: Callable[[WorkerSupervisor], None],
    ) -> None:
        self.id, self.base_model = id, base_model
        self._pool, self._context, self._on_end = pool, context, on_end
        self.jobs = JobsOnWorker(context, on_trained)
        self._giving: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._handle: WorkerHandle | None = None
        self._state: WorkerState | None = None
        self.launch_seconds = 0.0
        """Time from its launch until its base model was loaded; 0 before that."""
        self._ready_at = 0.0
        self.loss: WorkerLost | None = None
        """The error that ended it, if it was lost with a known reason."""
        self._capacity = Capacity()
        self._liveness = Liveness(context.config.step_seconds)
        self._ended_because = ""
        self.is_leaving = False
        """Whether its node is about to go: its jobs are to leave it, and it gets no more."""
        self._abandoned = False
        self.why_not_started = ""
        """Why its launch failed, as a text for the callers whose jobs wait for it."""
        self._launched_at = time.monotonic()
        self._task = asyncio.create_task(self._run(), name=f"follow {id}")

    @property
    def job_ids(self) -> frozenset[str]:
        """Jobs that the worker has or is being given."""
        return frozenset(self.jobs.attempts)

    @property
    def was_ready(self) -> bool:
        """Whether its base model was ever loaded."""
        return self._state is WorkerState.READY

    @property
    def was_ended(self) -> bool:
        """Whether `end` was called, so its end is not a loss."""
        return bool(self._ended_because)

    @property
    def attempts(self) -> dict[str, int]:
        """The attempt of each of its jobs, by job id."""
        return {job_id: attempt.attempt for job_id, attempt in self.jobs.attempts.items()}

    @property
    def view(self) -> WorkerView:
        """The worker as the scheduler sees it."""
        return WorkerView(
            id=self.id,
            base_model=self.base_model,
            num_jobs=len(self.jobs.attempts),
            ready=self.was_ready,
            idle_seconds=time.monotonic() - self.jobs.idle_since
            if self.jobs.idle_since is not None and not self.jobs.attempts
            else 0.0,
            fresh=self.jobs.num_given == 0,
            exclusive=self.jobs.has_exclusive,
            max_jobs=self._capacity.max_jobs(),
            load_seconds=self.launch_seconds,
            ready_seconds=time.monotonic() - self._ready_at if self.was_ready else 0.0,
        )

    def give(self, record: Record) -> None:
        """Prepares a claimed job and puts it on the worker."""
        job, tracker = record.job, self.jobs.add(record)
        self._giving[job.id, job.attempt] = asyncio.create_task(self._give(record, tracker), name=f"give {job.id}")

    async def stop_job(self, job_id: str) -> None:
        """Stops a job after its current step. Safe to repeat; ignores a lost worker, which polling detects."""
        tracker = self.jobs.attempts.get(job_id)
        if tracker is None:
            return
        if (giving := self._giving.pop((job_id, tracker.attempt), None)) is not None:
            giving.cancel()
            await asyncio.gather(giving, return_exceptions=True)
            await self.jobs.leave(job_id, tracker)
        await self._stop_on_worker(job_id, tracker.attempt)

    async def drop_attempt(self, job_id: str, attempt: int) -> None:
        """Stops an attempt that has lost its job, perhaps to another attempt on this worker, and drops its events."""
        tracker = self.jobs.attempts.get(job_id)
        if tracker is not None and tracker.attempt == attempt:
            await self.stop_job(job_id)
            self.jobs.forget(job_id, tracker)
        else:
            await self._stop_on_worker(job_id, attempt)

    async def end(self, reason: str) -> None:
        """Stops the worker. Jobs that are still on it are queued again and resume from their checkpoints."""
        self._ended_because = self._ended_because or reason
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def abandon(self) -> list[asyncio.Task[None]]:
        """Stops following the worker and leaves its jobs in the store unchanged. Returns the tasks that end soon."""
        self._abandoned = True
        tasks = [self._task, *self._giving.values()]
        for task in tasks:
            task.cancel()
        return tasks

    # Launch, polling and end of the worker

    async def _run(self) -> None:
        reason, out_of_memory, failure = "", False, LaunchFailure.INTERNAL
        with bind(worker=self.id, base_model=self.base_model):
            try:
                self._context.observer.worker_launched(self.base_model)
                self._enter(WorkerState.PENDING)
                async with asyncio.timeout(self._context.launch_seconds(self.base_model)):
                    self._handle = await self._pool.launch(self.base_model)
                self._enter(WorkerState.STARTING)
                await self._follow(self._handle)
            except asyncio.CancelledError:
                reason = self._ended_because
            except WorkerLost as error:
                reason, out_of_memory, self.loss = error.reason, error.out_of_memory, error
                wrong_software = isinstance(error, WrongSoftware)
                where = "started on a node where it can't be used" if wrong_software else "did not start"
                self.why_not_started = f"a worker {where}: {reason}"
                failure = LaunchFailure.REFUSED if self._handle is None else LaunchFailure.LOST
                failure = LaunchFailure.OUT_OF_MEMORY if out_of_memory else failure
                failure = LaunchFailure.SOFTWARE if wrong_software else failure
                failure = LaunchFailure.NO_PLACE if isinstance(error, NoPlace) else failure
            except TimeoutError:
                reason = "it did not start or answer in time"
                failure = LaunchFailure.NO_PLACE if self._handle is None else LaunchFailure.TIMEOUT
                seconds = self._context.launch_seconds(self.base_model)
                self.why_not_started = (
                    f"for {seconds:g} s, no node had the processors, GPUs, memory and labels that a worker of base "
                    f"model {self.base_model!r} needs ({self._needs()}), or the worker's process did not start"
                    if self._handle is None
                    else "a worker did not answer while it loaded its base model"
                )
            except Exception as error:
                log.exception("following a worker failed with an unexpected error")
                reason = f"{type(error).__name__} in the trainer"
                self.why_not_started = f"a worker did not start: {reason}"
            if not self._abandoned:
                await asyncio.shield(self._finish(reason, out_of_memory, failure))

    def _needs(self) -> str:
        """What the models file asks for its worker, and which settings say the rest."""
        asked = self._context.models.workers(self.base_model).model_dump(include=_OF_RAY, exclude_defaults=True)
        texts = [
            f"{key} {value:,.15g}" if isinstance(value, (int, float)) else f"{key} {value}"
            for key, value in asked.items()
        ]
        rest = [setting for key, setting in _BY_SETTINGS.items() if key not in asked]
        return ", ".join([*texts, f"the rest by {' and '.join(rest)}"] if rest else texts)

    def _enter(self, state: WorkerState | None) -> None:
        before, self._state = self._state, state
        self._context.observer.worker_changed(self.base_model, before, state)

    async def _finish(self, reason: str, out_of_memory: bool, failure: LaunchFailure) -> None:
        """`failure` says why the launch failed, if the worker was never ready."""
        planned = bool(self._ended_because)
        if not planned:
            log.warning("worker lost: %s", reason)
        for task in self._giving.values():
            task.cancel()
        if self._handle is not None:
            await self._handle.close()
        too_many = out_of_memory and self.jobs.num_given > 1
        for job_id, tracker in list(self.jobs.attempts.items()):
            if planned:
                await self.jobs.leave(job_id, tracker)
            elif too_many:
                await self.jobs.separate(job_id, tracker, "ran out of memory")
            else:
                await self.jobs.lose(job_id, tracker, reason)
        observer, was_ready = self._context.observer, self.was_ready
        if not planned and not was_ready:
            observer.launch_failed(self.base_model, failure)
        observer.worker_measured(self.base_model, self.id, None)
        observer.worker_ended(self.base_model, reason if planned else WorkerEnd.LOST if was_ready else WorkerEnd.FAILED)
        observer.worker_changed(self.base_model, self._state, None)
        self._on_end(self)
        self._context.wake_dispatcher.set()

    async def _follow(self, handle: WorkerHandle) -> None:
        config, since, started = self._context.config, 0, self._launched_at
        while True:
            # The time-out is the heartbeat: a live worker answers within poll_seconds, with or without events.
            async with asyncio.timeout(config.poll_seconds + config.heartbeat_seconds):
                report = await handle.poll(since, config.poll_seconds)
            why_lost = self._liveness.why_lost(report)
            if report.leaving and not self.is_leaving:
                self.is_leaving = True
                log.info("the worker's node is being drained; its jobs move with a checkpoint")
                self._context.wake_dispatcher.set()
            if report.ready and not self.was_ready:
                self.launch_seconds = time.monotonic() - started
                log.info("worker ready", extra={"fields": {"seconds": round(self.launch_seconds, 2), **report.details}})
                self._enter(WorkerState.READY)
                self._ready_at = self.jobs.idle_since = time.monotonic()
                self._context.wake_dispatcher.set()
            if report.ready and report.memory is not None:
                self._capacity.observe(len(report.attempts), report.memory.used_bytes, report.memory.limit_bytes)
                self._context.memory_use.observe(self.base_model, len(report.attempts), report.memory.used_bytes)
                self._context.observer.worker_measured(self.base_model, self.id, report.memory)
            if not report.ready and time.monotonic() - started > self._context.launch_seconds(self.base_model):
                raise TimeoutError
            for job_id, attempt in await self.jobs.store(report.events):
                await self.drop_attempt(job_id, attempt)
            since = report.last
            if why_lost:
                raise WorkerLost(why_lost)
            for job_id, attempt in report.attempts.items():
                if job_id not in self.jobs.attempts:  # dropped here; its stop was lost, or arrived before its task
                    await self._stop_on_worker(job_id, attempt)
            await asyncio.sleep(config.poll_pause_seconds)

    async def _stop_on_worker(self, job_id: str, attempt: int) -> None:
        if self._handle is not None:
            self._liveness.asked_to_stop(job_id, attempt)
            try:
                await self._handle.stop(job_id, attempt)
            except WorkerLost as error:
                log.info("a worker was lost before it stopped a job: %s", error.reason)

    # Jobs on the worker

    async def _give(self, record: Record, tracker: AttemptProgress) -> None:
        job = record.job
        with bind(job=job.id, prompt=job.spec.prompt):
            try:
                task = replace(await self._prepare(job), tenant=job.tenant, weight=record.weight)
                tracker.current_version, tracker.foreign_job = task.current_version, task.foreign_job
                if self._handle is not None:
                    await self._handle.add(task)
            except WorkerLost as error:
                await self.jobs.lose(job.id, tracker, error.reason)
            except SoftPromptError as error:
                field = error.violations[0].field if isinstance(error, InvalidInput) else "spec.dataset"
                await self.jobs.fail(job.id, tracker, "BAD_DATA", error.message, field)
            except Exception as error:
                log.exception("preparing a job failed with an unexpected error")
                await self.jobs.fail(job.id, tracker, "INTERNAL", f"preparing the job failed: {type(error).__name__}")
            finally:
                self._giving.pop((job.id, job.attempt), None)

    async def _prepare(self, job: Job) -> TrainingTask:
        """Prepares the job; retries while datasets or the prompt store are unavailable."""
        failures = 0
        while True:
            try:
                return await self._context.preparation.make_task(job)
            except Unavailable as error:
                failures += 1
                log.warning("a job is waiting: %s", error.message)
                if failures == 1:
                    await self._context.note(job.id, f"waiting: {error.message}", attempt=job.attempt)
                config = self._context.config
                await asyncio.sleep(retry_delay_seconds(failures, config.retry_first_seconds, config.retry_max_seconds))
