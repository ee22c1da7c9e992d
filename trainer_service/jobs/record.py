"""A job with the trainer's internal data about it, and its form as a database row."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
queued, and no job waits forever.
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


_CHANGING = ("pausing", "attempt", "failures", "runtime_seconds", "checkpointed", "last_event")
_CHANGING_TIMES = ("start_time", "end_time")
_OF_JOB = ("id", "caller", "tenant", *_CHANGING)
_OF_RECORD = ("queue_key", "queued_at", "not_before", "trained", "owner", "lease_until", "claimed_at")
_TIMES = ("create_time", *_CHANGING_TIMES)
"""Columns that have the name of their field; times are stored as seconds since the epoch."""
_JSON: Mapping[str, type[Any]] = {
    "progress": TuningProgress,
    "dataset_statistics": EncodingStatistics,
    "error": TuningError,
    "result": TuningResult,
}
"""Columns that hold a field as JSON."""


def to_row(record: Record) -> dict[str, Any]:
    """The record as values of the columns of `jobs`."""
    job = record.job
    return {
        **{name: _encoded(name, value) for name, value in _changing(record).items()},
        "id": job.id,
        "caller": job.caller,
        "tenant": job.tenant,
        "create_time": job.create_time.timestamp(),
        "prompt": job.spec.prompt,
        "base_model": job.effective.base_model.id,
        "request_id": job.request_id or None,
        "spec": to_json(job.spec),
        "effective": job.effective.model_dump_json(),
        "deadline": job.spec.deadline.timestamp() if job.spec.deadline else None,
    }


def changed_columns(before: Record, after: Record) -> dict[str, Any]:
    """The columns of `to_row` that differ between two records of a job: a step changes few of them."""
    old = _changing(before)
    return {name: _encoded(name, value) for name, value in _changing(after).items() if value != old[name]}


def _changing(record: Record) -> dict[str, Any]:
    """The values of the columns that may change after the job's creation, not encoded."""
    job = record.job
    return {
        **{name: getattr(job, name) for name in ("state", *_CHANGING, *_CHANGING_TIMES, *_JSON)},
        **{name: getattr(record, name) for name in _OF_RECORD},
        "solo": record.exclusive,
    }


def _encoded(name: str, value: Any) -> Any:
    """The value as its column holds it."""
    if isinstance(value, JobState):
        return value.value
    if isinstance(value, datetime):
        return value.timestamp()
    return to_json(value) if name in _JSON and value is not None else value


def from_row(row: RowMapping) -> Record:
    """The record of a row of `jobs`."""
    job = Job(
        **{name: row[name] for name in _OF_JOB},
        **{name: None if row[name] is None else to_datetime(row[name]) for name in _TIMES},
        **{name: from_json(kind, row[name]) if row[name] else None for name, kind in _JSON.items()},
        state=JobState(row["state"]),
        request_id=row["request_id"] or "",
        spec=_frozen(StoredSpec, row["spec"]),
        effective=_frozen(EffectiveSpec, row["effective"]),
    )
    return Record(job=job, exclusive=row["solo"], **{name: row[name] for name in _OF_RECORD})


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
