"""The jobs that one worker has, and what its events mean for them: progress, the next state, or another attempt.

Events are stored before they are acknowledged, so an unavailable database or a lost answer loses none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from shared.errors import SoftPromptError
from shared.log import bind
from shared.values.results import TuningError
from trainer_service.dispatch.progress import AttemptProgress
from trainer_service.jobs import transitions
from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.model import JOB_PREFIX, EventPayload, Job, Note
from trainer_service.jobs.record import Record
from trainer_service.jobs.store.files import FileKind
from trainer_service.jobs.store.job_store import StaleAttempt
from trainer_service.jobs.store.report_store import load_report, report_of, save_report
from trainer_service.publish.predecessor import Predecessor
from trainer_service.publish.publication import Publication, make_publication
from trainer_service.training.events import Checkpointed, Failed, Finished, Stopped, TrainingEvent, TrainingResult

log = logging.getLogger(__name__)


class JobsOnWorker:
    """`on_trained(record, publication)` takes a trained job over."""

    def __init__(self, context: JobsContext, on_trained: Callable[[Record, Publication], None]) -> None:
        self._context, self._on_trained = context, on_trained
        self.attempts: dict[str, AttemptProgress] = {}
        """The attempts that the worker has or is being given, by job id."""
        self._records: dict[str, Record] = {}
        self._given_at: dict[str, float] = {}
        """When it was given each of them (monotonic times)."""
        self.num_given = 0
        """Jobs that it was ever given."""
        self.idle_since: float | None = None
        """When it became ready, or its last job left (a monotonic time)."""

    def add(self, record: Record) -> AttemptProgress:
        """A claimed job that the worker is being given."""
        job = record.job
        tracker = AttemptProgress(job.attempt, job.progress, self._context.config.progress_seconds)
        self.attempts[job.id], self._records[job.id] = tracker, record
        self._given_at[job.id] = time.monotonic()
        self.num_given += 1
        return tracker

    @property
    def has_exclusive(self) -> bool:
        """Whether one of the jobs must be alone."""
        return any(record.exclusive for record in self._records.values())

    def is_over_time(self, job_id: str) -> bool:
        """Whether the job has passed its deadline or its maximum runtime."""
        record = self._records.get(job_id)
        return record is not None and transitions.must_leave(self._in_true_time(record), time.time())

    def _in_true_time(self, record: Record) -> Record:
        """The record as if the clock had not been set since the worker was given the job."""
        given_at = self._given_at.get(record.job.id)
        if given_at is None or record.claimed_at is None:
            return record
        return replace(record, claimed_at=time.time() - (time.monotonic() - given_at))

    async def store(self, events: Sequence[TrainingEvent]) -> list[tuple[str, int]]:
        """Stores a worker's events. Returns job and attempt of those that another attempt has taken over."""
        by_job: dict[str, list[TrainingEvent]] = {}
        stale = list[tuple[str, int]]()
        for event in events:
            self._context.observer.training_event(event)
            by_job.setdefault(event.job_id, []).append(event)
        for job_id, job_events in by_job.items():
            with bind(job=job_id):
                try:
                    await self._store_for(job_id, job_events)
                except StaleAttempt:
                    log.info("this attempt no longer has the job")
                    stale.append((job_id, job_events[0].attempt))
        return stale

    async def _store_for(self, job_id: str, events: Sequence[TrainingEvent]) -> None:
        """Stores progress, evaluations and checkpoints in order in one transaction, then applies the final event."""
        tracker = self.attempts.get(job_id)
        if tracker is None:
            return
        payloads: list[EventPayload] = []
        checkpoint: Checkpointed | None = None
        last: TrainingEvent | None = None
        for event in events:
            if event.attempt != tracker.attempt:
                continue
            payloads += tracker.absorb(event, time.time())
            checkpoint = event if isinstance(event, Checkpointed) else checkpoint
            last = event
        if checkpoint is not None:
            await self._keep(job_id, tracker.attempt, FileKind.CHECKPOINT, checkpoint.data)
        if payloads or tracker.statistics is not None or checkpoint is not None:
            await self._progress(job_id, tracker, payloads, checkpointed=checkpoint is not None)
        match last:
            case Finished():
                await self._finished(job_id, tracker, last.result)
            case Failed():
                await self._failed(job_id, tracker, last)
            case Stopped():
                await self._stopped(job_id, tracker, last)

    async def _progress(
        self, job_id: str, tracker: AttemptProgress, payloads: Sequence[EventPayload], *, checkpointed: bool
    ) -> None:
        progress, statistics = tracker.progress, tracker.statistics
        tracker.statistics = None
        await self._context.change(
            job_id,
            lambda record: transitions.progressed(record, progress, statistics, checkpointed=checkpointed),
            attempt=tracker.attempt,
            payloads=payloads,
            is_progress=True,
        )

    async def _finished(self, job_id: str, tracker: AttemptProgress, trained: TrainingResult) -> None:
        """Saves the publication before the state changes, so a crash after this point doesn't lose the training."""
        record = self._records[job_id]
        try:
            publication, encoded = await asyncio.to_thread(
                _encoded_publication, record.job, trained, tracker.current_version, await self._predecessor(tracker)
            )
        except (SoftPromptError, ValueError) as error:
            log.exception("a trained prompt can't be encoded as a version")
            await self.fail(job_id, tracker, "INTERNAL", f"the trained prompt can't be published: {error}"[:500])
            return
        await self._context.database.retry(
            save_report, self._context.store.database, job_id, tracker.attempt, report_of(trained)
        )
        await self._keep(job_id, tracker.attempt, FileKind.OUTCOME, encoded)
        after = await self._context.change(
            job_id, lambda record: transitions.trained(self._in_true_time(record), time.time()), attempt=tracker.attempt
        )
        self.forget(job_id, tracker)
        self._on_trained(after, publication)

    async def _predecessor(self, tracker: AttemptProgress) -> Predecessor | None:
        """What is kept of a current version of another base model; None for one that this job's worker measured."""
        if tracker.foreign_job is None:
            return None
        database, id = self._context.store.database, tracker.foreign_job.removeprefix(JOB_PREFIX)
        report = await self._context.database.retry(load_report, database, id) if id else None
        return Predecessor(tracker.foreign_job, None if report is None else report.answers)

    async def _failed(self, job_id: str, tracker: AttemptProgress, event: Failed) -> None:
        out_of_memory = event.code == "OUT_OF_MEMORY"
        if event.code == "DATA_UNAVAILABLE":
            await self.lose(job_id, tracker, event.message)
        elif event.retryable and self.num_given > 1 and not self._records[job_id].exclusive:
            # Another job of the worker may be the cause.
            await self.separate(job_id, tracker, "ran out of memory" if out_of_memory else "failed unexpectedly")
        else:
            advice = "; shorter examples or fewer virtual tokens need less" if out_of_memory else ""
            await self.fail(job_id, tracker, event.code, event.message + advice, event.field)

    async def _stopped(self, job_id: str, tracker: AttemptProgress, event: Stopped) -> None:
        if event.data is not None:
            await self._keep(job_id, tracker.attempt, FileKind.CHECKPOINT, event.data)
        best = f"; the best evaluation was at step {tracker.progress.best_step}" if tracker.progress.metrics else ""
        kept = "; its checkpoint is kept" if event.data is not None else ""
        note = f"left its worker after step {event.step}{best}{kept}"
        left = transitions.left_with_checkpoint if event.data is not None else transitions.left_worker
        await self._change_and_forget(job_id, tracker, lambda record: left(record, time.time()), note)

    async def separate(self, job_id: str, tracker: AttemptProgress, why: str) -> None:
        """Queues a job again, to continue alone in a new process."""
        note = f"{why} beside or after other jobs; continues alone in a new process"
        await self._change_and_forget(job_id, tracker, lambda record: transitions.separated(record, time.time()), note)

    async def leave(self, job_id: str, tracker: AttemptProgress) -> None:
        """Queues a job again, or ends it as it was asked to, without a checkpoint of its last steps."""
        await self._change_and_forget(job_id, tracker, lambda record: transitions.left_worker(record, time.time()))

    async def lose(self, job_id: str, tracker: AttemptProgress, reason: str) -> None:
        """Queues a job again whose worker is lost, or fails it after too many losses."""
        reason, config = reason[:300], self._context.config
        note = f"lost its worker ({reason}); continues from its last checkpoint"
        await self._change_and_forget(
            job_id, tracker, lambda record: transitions.lost(record, time.time(), reason, config), note
        )

    async def fail(self, job_id: str, tracker: AttemptProgress, code: str, message: str, field: str = "") -> None:
        """Ends a job with an error."""
        error = TuningError(code=code, message=message, field=field)
        await self._change_and_forget(job_id, tracker, lambda record: transitions.failed(record, error, time.time()))

    async def _change_and_forget(
        self, job_id: str, tracker: AttemptProgress, move: transitions.Move, note: str = ""
    ) -> None:
        payloads = [Note(text=note)] if note else []
        try:
            after = await self._context.change(
                job_id, lambda record: move(self._in_true_time(record)), attempt=tracker.attempt, payloads=payloads
            )
        except StaleAttempt:
            log.info("this attempt no longer has the job")
        else:
            if (job := after.job).state.is_final:
                log.info("job ended: %s", job.state, extra={"fields": {"error": job.error.code if job.error else ""}})
                await self._context.clean(job)
        self.forget(job_id, tracker)

    async def _keep(self, job_id: str, attempt: int, kind: FileKind, data: bytes) -> None:
        await self._context.pools.job_files.retry(self._context.files.save, job_id, kind, attempt, data)

    def forget(self, job_id: str, tracker: AttemptProgress) -> None:
        """Removes the attempt, unless a later attempt of the job has come to this worker meanwhile."""
        if self.attempts.get(job_id) is tracker:
            del self.attempts[job_id], self._records[job_id], self._given_at[job_id]
        if not self.attempts:
            self.idle_since = time.monotonic()
        self._context.wake_dispatcher.set()


def _encoded_publication(
    job: Job, trained: TrainingResult, current_version: str, predecessor: Predecessor | None
) -> tuple[Publication, bytes]:
    publication = make_publication(job, trained, current_version, predecessor)
    return publication, publication.encode()
