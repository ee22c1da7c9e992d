"""Everything that can happen to a job, as pure functions from the old record to the new one. The store checks each
result against the legal transitions.

Requests call cancel, pause and resume; the dispatcher calls expired, lost and left_worker; a worker's supervisor calls
progressed, left_worker, lost, failed and trained; the publisher calls succeeded, failed, cancelled and result_lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shared.errors import PreconditionFailed
from shared.values.results import EncodingStatistics, TuningError, TuningProgress, TuningResult
from trainer_service.jobs.config import JobsConfig, retry_delay_seconds
from trainer_service.jobs.record import NO_REPLICA, Record, queue_key, to_datetime
from trainer_service.jobs.states import JobState, check_move, refusal

_EXCLUSIVE_AFTER_FAILURES = 2
"""Losses in a row after which a job runs alone: if it kills its workers, it must not repeatedly affect other jobs."""

Move = Callable[[Record], Record]
"""A change of a job; may raise PreconditionFailed."""


def cancel(record: Record, now: float) -> Record:
    """Sets a job with a replica to CANCELLING, any other unended job to CANCELLED. A cancelled job stays unchanged."""
    match record.job.state:
        case JobState.CANCELLING | JobState.CANCELLED:
            return record
        case JobState.RUNNING:
            return _to(record, JobState.CANCELLING)
        case _:
            return _end(record, JobState.CANCELLED, now)


def pause(record: Record) -> Record:
    """Sets a waiting job to PAUSED and marks a running one, which becomes PAUSED once it has left its worker. A paused
    job stays unchanged.
    """
    if record.job.state is JobState.PAUSED:
        return record
    if record.job.state is JobState.RUNNING:
        if record.trained:
            raise PreconditionFailed(
                f"job {record.job.id!r} is trained and being published; it can't be paused now",
                job=record.job.id,
                state="RUNNING",
            )
        return record.with_job(pausing=True)
    return _to(record, JobState.PAUSED)


def resume(record: Record, now: float) -> Record:
    """Queues a PAUSED job again, behind the jobs that waited meanwhile, or withdraws a pause that has not happened yet.
    A queued job stays unchanged.
    """
    if record.job.state is JobState.QUEUED:
        return record
    if record.job.state is JobState.RUNNING and record.job.pausing:
        return record.with_job(pausing=False)
    if record.job.state is JobState.RUNNING:
        raise refusal(record.job.id, JobState.RUNNING, JobState.QUEUED)
    return replace(_to(record, JobState.QUEUED), queue_key=queue_key(record.job.spec.priority, now), not_before=0.0)


def expired(record: Record, now: float) -> Record:
    """A waiting job fails if its deadline has passed."""
    return failed(record, _deadline_error(), now) if past_deadline(record, now) else record


def left_worker(record: Record, now: float) -> Record:
    """A job has left its worker: it is cancelled, paused, failed because its time is over, or queued again.

    A trained job stays CANCELLING: only a publisher can find out whether it was published before (`claim_trained`).
    """
    freed = _free(record, now)
    if freed.job.state is JobState.CANCELLING:
        return freed if freed.trained else _end(freed, JobState.CANCELLED, now)
    if freed.job.pausing:
        return _to(freed.with_job(pausing=False), JobState.PAUSED)
    if over_runtime(freed, now):
        return failed(freed, _max_runtime_error(freed), now)
    if past_deadline(freed, now):
        return failed(freed, _deadline_error(), now)
    return _to(freed, JobState.QUEUED)


def lost(record: Record, now: float, reason: str, config: JobsConfig) -> Record:
    """A job has lost its worker: it is queued again with a growing back-off, or fails after too many losses."""
    freed = left_worker(record, now)
    if freed.job.state is not JobState.QUEUED or freed.trained:
        return freed
    failures = freed.job.failures + 1
    if failures > config.max_infrastructure_failures:
        message = f"{failures} attempts were lost; the last one: {reason}"
        return failed(freed.with_job(failures=failures), TuningError(code="WORKER_LOST", message=message), now)
    delay = retry_delay_seconds(failures, config.retry_first_seconds, config.retry_max_seconds)
    exclusive = freed.exclusive or failures >= _EXCLUSIVE_AFTER_FAILURES
    return replace(freed.with_job(failures=failures), not_before=now + delay, exclusive=exclusive)


def orphaned(record: Record, now: float, reason: str, config: JobsConfig) -> Record:
    """A job has lost its trainer replica. That counts as a loss, because the job may be the cause, but the back-off
    begins only with the second loss.
    """
    after = lost(record, now, reason, config)
    return replace(after, not_before=0.0) if after.job.failures <= 1 else after


def failed(record: Record, error: TuningError, now: float) -> Record:
    """A job has failed. A CANCELLING job becomes CANCELLED instead, as its owner wanted."""
    if record.job.state is JobState.CANCELLING:
        return cancelled(record, now)
    return _end(_free(record, now).with_job(error=error, pausing=False), JobState.FAILED, now)


def cancelled(record: Record, now: float) -> Record:
    """A CANCELLING job that was not published ends."""
    return _end(_free(record, now), JobState.CANCELLED, now)


def trained(record: Record, now: float) -> Record:
    """A job is trained and its result is saved; it stays with this replica until it is published."""
    kept = replace(record, trained=True, claimed_at=None)
    return kept.with_job(runtime_seconds=record.runtime_seconds(now), pausing=False)


def succeeded(record: Record, result: TuningResult, now: float) -> Record:
    """A job has ended with a result."""
    return _end(_free(record, now).with_job(result=result, pausing=False), JobState.SUCCEEDED, now)


def progressed(
    record: Record, progress: TuningProgress, statistics: EncodingStatistics | None, *, checkpointed: bool
) -> Record:
    """A worker has reported progress. A checkpoint resets the losses: only attempts without a checkpoint count."""
    changes: dict[str, Any] = {"progress": progress}
    if statistics is not None:
        changes["dataset_statistics"] = statistics
    if checkpointed:
        changes |= {"failures": 0, "checkpointed": True}
    return record.with_job(**changes)


def separated(record: Record, now: float) -> Record:
    """A job has failed in a worker that other jobs use or have used, perhaps because of them: it is queued again (or
    paused, if it was to pause) to run alone in a fresh worker.
    """
    return replace(left_worker(record, now), exclusive=True)


def result_lost(record: Record, now: float) -> Record:
    """The trained prompt of a job was lost before its publication: the job is queued to finish training again."""
    freed = left_worker(record, now)
    return cancelled(freed, now) if freed.job.state is JobState.CANCELLING else replace(freed, trained=False)


def left_with_checkpoint(record: Record, now: float) -> Record:
    """A job has left its worker after its checkpoint was stored."""
    return left_worker(record.with_job(checkpointed=True), now)


def must_leave(record: Record, now: float) -> bool:
    """Whether a running job has passed its maximum runtime or its deadline."""
    return over_runtime(record, now) or past_deadline(record, now)


def past_deadline(record: Record, now: float) -> bool:
    """Whether an untrained job has passed its deadline."""
    deadline = record.job.spec.deadline
    return not record.trained and deadline is not None and now >= deadline.timestamp()


def over_runtime(record: Record, now: float) -> bool:
    """Whether an untrained job has passed its maximum time on workers."""
    return not record.trained and record.runtime_seconds(now) > record.job.effective.max_runtime_seconds


def _max_runtime_error(record: Record) -> TuningError:
    limit = record.job.effective.max_runtime_seconds
    message = f"spent {record.job.runtime_seconds:.0f} s on workers; {limit:.0f} s are allowed"
    return TuningError(code="MAX_RUNTIME", message=message, field="spec.max_runtime")


def _deadline_error() -> TuningError:
    return TuningError(code="DEADLINE_EXCEEDED", message="was not trained before its deadline", field="spec.deadline")


def _free(record: Record, now: float) -> Record:
    kept = record.with_job(runtime_seconds=record.runtime_seconds(now))
    return replace(kept, owner=NO_REPLICA, lease_until=0.0, claimed_at=None)


def _to(record: Record, state: JobState) -> Record:
    check_move(record.job.id, record.job.state, state)
    return record.with_job(state=state)


def _end(record: Record, state: JobState, now: float) -> Record:
    return _to(record, state).with_job(end_time=to_datetime(now))
