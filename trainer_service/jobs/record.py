"""A job with the trainer's internal data about it, and its form as a database row."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import RowMapping

from shared.errors import Conflict
from shared.values.results import EncodingStatistics, TuningError, TuningProgress, TuningResult
from trainer_service.jobs.model import EffectiveSpec, Job, StoredSpec
from trainer_service.jobs.states import JobState
from trainer_service.jobs.stored_json import from_json, to_json

T = TypeVar("T")

NO_REPLICA = ""
PRIORITY_POINT_SECONDS = 600.0
"""One point of priority equals ten minutes of waiting. A job's place among its tenant's jobs is thus fixed when it is
queued, and no job waits for ever.
"""


@dataclass(frozen=True)
class Record:
    """A job and its scheduling data. Times are seconds since the epoch."""

    job: Job
    queue_key: float
    """The tenant's job with the smallest key goes first."""
    not_before: float = 0.0
    """End of the back-off; the job is not claimed earlier."""
    trained: bool = False
    """Whether the job is trained, so that it needs no worker and only has to be published."""
    exclusive: bool = False
    """Whether the job needs a fresh worker for itself, because it ran out of memory beside others or lost workers."""
    owner: str = NO_REPLICA
    """The trainer replica that has the job."""
    lease_until: float = 0.0
    queued_at: float = 0.0
    """When the job last became QUEUED. The store sets it."""
    claimed_at: float | None = None
    """When the job was given to a worker; None while it is on none."""
    weight: float = 1.0
    """Weight of its tenant when it was claimed; not stored with the job."""
    stored_bytes: int = 0
    """Bytes of the version that it published, for its usage; set when it ends, and not stored with the job."""

    def with_job(self, **changes: Any) -> Record:
        """A copy with changed fields of the job."""
        return replace(self, job=self.job.model_copy(update=changes))

    def runtime_seconds(self, now: float) -> float:
        """Time on workers so far, including the current attempt."""
        return self.job.runtime_seconds + (max(0.0, now - self.claimed_at) if self.claimed_at is not None else 0.0)


def queue_key(priority: int, queued_at: float) -> float:
    """The key by which a tenant's jobs are ordered; the smallest goes first."""
    return queued_at - priority * PRIORITY_POINT_SECONDS


def to_row(record: Record) -> dict[str, Any]:
    """The record as values of the columns of `jobs`."""
    job = record.job
    return {
        "id": job.id,
        "state": job.state.value,
        "pausing": job.pausing,
        "prompt": job.spec.prompt,
        "base_model": job.effective.base_model.id,
        "caller": job.caller,
        "tenant": job.tenant,
        "request_id": job.request_id or None,
        "spec": to_json(job.spec),
        "effective": job.effective.model_dump_json(),
        "queue_key": record.queue_key,
        "queued_at": record.queued_at,
        "not_before": record.not_before,
        "trained": record.trained,
        "solo": record.exclusive,
        "attempt": job.attempt,
        "failures": job.failures,
        "owner": record.owner,
        "lease_until": record.lease_until,
        "claimed_at": record.claimed_at,
        "runtime_seconds": job.runtime_seconds,
        "checkpointed": job.checkpointed,
        "deadline": job.spec.deadline.timestamp() if job.spec.deadline else None,
        "progress": to_json(job.progress),
        "dataset_statistics": to_json(job.dataset_statistics) if job.dataset_statistics else None,
        "error": to_json(job.error) if job.error else None,
        "result": to_json(job.result) if job.result else None,
        "create_time": job.create_time.timestamp(),
        "start_time": job.start_time.timestamp() if job.start_time else None,
        "end_time": job.end_time.timestamp() if job.end_time else None,
        "last_event": job.last_event,
    }


IMMUTABLE_COLUMNS = frozenset(
    {"id", "prompt", "base_model", "caller", "tenant", "request_id", "spec", "effective", "create_time", "deadline"}
)


def from_row(row: RowMapping) -> Record:
    """The record of a row of `jobs`."""
    job = Job(
        id=row["id"],
        spec=_frozen(StoredSpec, row["spec"]),
        effective=_frozen(EffectiveSpec, row["effective"]),
        state=JobState(row["state"]),
        pausing=row["pausing"],
        caller=row["caller"],
        tenant=row["tenant"],
        request_id=row["request_id"] or "",
        attempt=row["attempt"],
        failures=row["failures"],
        runtime_seconds=row["runtime_seconds"],
        checkpointed=row["checkpointed"],
        progress=from_json(TuningProgress, row["progress"]),
        dataset_statistics=from_json(EncodingStatistics, row["dataset_statistics"])
        if row["dataset_statistics"]
        else None,
        error=from_json(TuningError, row["error"]) if row["error"] else None,
        result=from_json(TuningResult, row["result"]) if row["result"] else None,
        create_time=to_datetime(row["create_time"]),
        start_time=to_datetime(row["start_time"]) if row["start_time"] is not None else None,
        end_time=to_datetime(row["end_time"]) if row["end_time"] is not None else None,
        last_event=row["last_event"],
    )
    return Record(
        job=job,
        queue_key=row["queue_key"],
        queued_at=row["queued_at"],
        not_before=row["not_before"],
        trained=row["trained"],
        exclusive=row["solo"],
        owner=row["owner"],
        lease_until=row["lease_until"],
        claimed_at=row["claimed_at"],
    )


@lru_cache(maxsize=64)
def _frozen(kind: type[T], text: str) -> T:
    """`from_json` of a column that never changes: a job that runs is read many times. Few, since specs can be large."""
    return from_json(kind, text)


def to_datetime(seconds: float) -> datetime:
    """Seconds since the epoch as a time in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def same_request(first: StoredSpec, second: StoredSpec) -> bool:
    """Whether two specs are equal as JSON."""
    return bool(json.loads(to_json(first)) == json.loads(to_json(second)))


def checked_same(found: Job, spec: StoredSpec, request_id: str) -> Job:
    """`found`, the earlier job of `request_id`. Raises Conflict if it has another spec."""
    if not same_request(found.spec, spec):
        message = f"request_id {request_id!r} was used before, for job {found.id!r} with another spec"
        raise Conflict(message, current=found.name)
    return found
