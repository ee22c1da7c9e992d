"""Everything that can happen to a job, as pure functions from what it was to what it is. The store checks each against
the legal moves.

Who calls: requests (cancel, pause, resume), the dispatcher (lost, over time), a worker's supervisor (stopped, failed,
trained), the publisher (succeeded).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shared.errors import PreconditionFailed
from shared.values.results import EncodingStatistics, TuningError, TuningProgress, TuningResult
from trainer_service.jobs.config import JobsConfig, retry_delay_seconds
from trainer_service.jobs.record import NOBODY, Record, queue_key, to_datetime
from trainer_service.jobs.states import JobState, check_move

_EXCLUSIVE_AFTER_FAILURES = 2
"""From then on a job goes alone: if it is the one that kills workers, it must not take the others of a cohort with it
again and again.
"""

Move = Callable[[Record], Record]


def cancel(record: Record, now: float) -> Record:
    """On a worker: CANCELLING. Anywhere else: CANCELLED. Cancelled already: as it is."""
    match record.job.state:
        case JobState.CANCELLING | JobState.CANCELLED:
            return record
        case JobState.RUNNING:
            return _to(record, JobState.CANCELLING)
        case _:
            return _end(record, JobState.CANCELLED, now)


def pause(record: Record) -> Record:
    """On a worker: marked, and PAUSED once it has left. Waiting: PAUSED. Paused already: as it is."""
    if record.job.state is JobState.PAUSED:
        return record
    if record.job.state is JobState.RUNNING:
        if record.trained:
            raise PreconditionFailed(
                f"job {record.job.id!r} is trained and being published", job=record.job.id, state="RUNNING"
            )
        return record.with_job(pausing=True)
    return _to(record, JobState.PAUSED)


def resume(record: Record, now: float) -> Record:
    """PAUSED: queued again, behind those that waited meanwhile. Still leaving its worker: not paused after all."""
    if record.job.state is JobState.QUEUED:
        return record
    if record.job.state is JobState.RUNNING and record.job.pausing:
        return record.with_job(pausing=False)
    if record.job.state is JobState.RUNNING:
        check_move(record.job.id, JobState.RUNNING, JobState.RUNNING)
    return replace(_to(record, JobState.QUEUED), queue_key=queue_key(record.job.spec.priority, now), not_before=0.0)


def expired(record: Record, now: float) -> Record:
    """Waited in the queue until its deadline had passed."""
    return failed(record, _deadline_error(), now) if past_deadline(record, now) else record


def left_worker(record: Record, now: float) -> Record:
    """Left its worker on request, with its checkpoint stored: cancelled, paused, over its time, or queued to go on
    elsewhere.
    """
    freed = _free(record, now)
    if freed.job.state is JobState.CANCELLING:
        return _end(freed, JobState.CANCELLED, now)
    if freed.job.pausing:
        return _to(freed.with_job(pausing=False), JobState.PAUSED)
    if over_runtime(freed, now):
        return failed(freed, _max_runtime_error(freed), now)
    if past_deadline(freed, now):
        return failed(freed, _deadline_error(), now)
    return _to(freed, JobState.QUEUED)


def lost(record: Record, now: float, reason: str, config: JobsConfig) -> Record:
    """Its worker is gone. Tried again after a pause that doubles, unless that happened too often."""
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
    """Its trainer replica is gone. It counts as lost, since a job can be what ends replicas, but waits only from the
    second time on.
    """
    after = lost(record, now, reason, config)
    return replace(after, not_before=0.0) if after.job.failures <= 1 else after


def failed(record: Record, error: TuningError, now: float) -> Record:
    """Ended by an error. A job that is being cancelled is cancelled: that is what its owner wanted."""
    if record.job.state is JobState.CANCELLING:
        return _end(_free(record, now), JobState.CANCELLED, now)
    return _end(_free(record, now).with_job(error=error, pausing=False), JobState.FAILED, now)


def trained(record: Record, now: float) -> Record:
    """Its outcome is kept; it stays with this replica until it is published."""
    kept = replace(record, trained=True, claimed_at=None)
    return kept.with_job(runtime_seconds=record.runtime_seconds(now), pausing=False)


def succeeded(record: Record, result: TuningResult, now: float) -> Record:
    return _end(_free(record, now).with_job(result=result, pausing=False), JobState.SUCCEEDED, now)


def progressed(
    record: Record, progress: TuningProgress, statistics: EncodingStatistics | None, *, checkpointed: bool
) -> Record:
    """What its worker told. A checkpoint forgives earlier losses: only attempts that get nowhere count against a job."""
    changes: dict[str, Any] = {"progress": progress}
    if statistics is not None:
        changes["dataset_statistics"] = statistics
    if checkpointed:
        changes |= {"failures": 0, "checkpointed": True}
    return record.with_job(**changes)


def separated(record: Record, now: float) -> Record:
    """Ran out of memory, or failed for no reason of its own, in a worker that others use or have used: once more, alone
    in a fresh one.
    """
    freed = left_worker(record, now)
    return replace(freed, exclusive=True) if freed.job.state is JobState.QUEUED else freed


def outcome_lost(record: Record, now: float) -> Record:
    """Trained, and the trained prompt is gone: queued to be trained to its end again."""
    return replace(left_worker(record, now), trained=False)


def left_with_checkpoint(record: Record, now: float) -> Record:
    return left_worker(record.with_job(checkpointed=True), now)


def must_leave(record: Record, now: float) -> bool:
    """Its time on workers is used up, or its deadline has passed."""
    return over_runtime(record, now) or past_deadline(record, now)


def past_deadline(record: Record, now: float) -> bool:
    deadline = record.job.spec.deadline
    return not record.trained and deadline is not None and now >= deadline.timestamp()


def over_runtime(record: Record, now: float) -> bool:
    return not record.trained and record.runtime_seconds(now) > record.job.effective.max_runtime_seconds


def _max_runtime_error(record: Record) -> TuningError:
    limit = record.job.effective.max_runtime_seconds
    message = f"spent {record.job.runtime_seconds:.0f} s on workers; {limit:.0f} s are allowed"
    return TuningError(code="MAX_RUNTIME", message=message, field="spec.max_runtime")


def _deadline_error() -> TuningError:
    return TuningError(code="DEADLINE_EXCEEDED", message="was not trained before its deadline", field="spec.deadline")


def _free(record: Record, now: float) -> Record:
    kept = record.with_job(runtime_seconds=record.runtime_seconds(now))
    return replace(kept, owner=NOBODY, lease_until=0.0, claimed_at=None)


def _to(record: Record, state: JobState) -> Record:
    check_move(record.job.id, record.job.state, state)
    return record.with_job(state=state)


def _end(record: Record, state: JobState, now: float) -> Record:
    return _to(record, state).with_job(end_time=to_datetime(now))
