"""Heartbeats of replicas: a small record outside the log that each replica overwrites every few seconds.

The records inform people (`prompts status`) and the check "served by all"; versions don't depend on them.

A replica is live if its record keeps changing, measured with the reader's clock. At the first read, the reader can only
compare the two machines' clocks; the tolerated difference is LIVE_SECONDS.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from shared.errors import DamagedBlob, InvalidInput
from shared.prompt.manifest import Timestamp, parse_timestamp, utc_now
from shared.store.base import ObjectBackend
from shared.store.commit import Name, ReplicaId, VersionNumber
from shared.store.layout import MAX_REPLICA_BYTES, REPLICAS, replica_key

log = logging.getLogger(__name__)

LIVE_SECONDS = 30.0
"""A replica without a heartbeat for this time, or for three of its heartbeat intervals if longer, is not live."""

FORGET_SECONDS = 24 * 3600.0
"""Age at which the records of replicas that are not live are removed."""

_RECORD = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


def _check_time(text: str) -> str:
    parse_timestamp(text)  # a date such as 2026-02-30 has the right form
    return text


_Time = Annotated[Timestamp, AfterValidator(_check_time)]


class LoadedVersion(BaseModel):
    """A version that a replica serves. `publish_to_served_seconds` compares the clocks of trainer and replica."""

    model_config = _RECORD
    prompt: Name
    version: VersionNumber
    digest: str = Field(max_length=100)
    loaded_at: _Time
    publish_to_served_seconds: float | None = None


class RefusedVersion(BaseModel):
    """A version that a replica has refused, and why."""

    model_config = _RECORD
    prompt: Name
    version: VersionNumber
    digest: str = Field(max_length=100)
    reason: str = Field(max_length=2000)


class ReplicaRecord(BaseModel):
    """The heartbeat of one replica at `updated_at`."""

    model_config = _RECORD
    id: ReplicaId
    base_model: str = Field(default="", max_length=200)
    base_model_fingerprint: str = Field(default="", max_length=200)
    address: str = Field(default="", max_length=300)
    """`host:port` of its GenerationService; empty from replicas that routers can't reach, and from older ones."""
    running: int = Field(default=0, ge=0, le=1_000_000)
    """Number of requests that its engine computes now."""
    waiting: int = Field(default=0, ge=0, le=1_000_000)
    """Number of requests that wait for a place."""
    revision: int = Field(default=0, ge=0, lt=10**12)
    started_at: _Time
    updated_at: _Time = Field(default_factory=utc_now)
    heartbeat_seconds: float = Field(default=5.0, gt=0, le=86_400)
    """Interval between heartbeats."""
    loaded: tuple[LoadedVersion, ...] = ()
    refused: tuple[RefusedVersion, ...] = ()
    recent: tuple[Name, ...] = ()
    """Recently used prompts, most recent first. A starting replica loads them first."""

    @property
    def live_seconds(self) -> float:
        """Time without a change after which the replica is not live."""
        return max(LIVE_SECONDS, 3 * self.heartbeat_seconds)


@dataclass(frozen=True)
class _Seen:
    """When a reader read a record and saw it change, on its monotonic clock. `changed_at` None: no change yet."""

    updated_at: Timestamp
    first_at: float
    looked_at: float
    changed_at: float | None = None


class ReplicaDirectory:
    """The records of all replicas."""

    def __init__(self, backend: ObjectBackend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}

    def put(self, record: ReplicaRecord) -> None:
        """Write a replica's record. Raises InvalidInput if it is too large."""
        data = record.model_dump_json().encode()
        if len(data) > MAX_REPLICA_BYTES:
            raise InvalidInput.of(
                "replica", f"the record has {len(data)} bytes; at most {MAX_REPLICA_BYTES} are allowed"
            )
        self._backend.put(replica_key(record.id), data)

    def list(self) -> list[ReplicaRecord]:
        """Records of the live replicas, sorted by id. Unreadable records are logged and skipped."""
        records = [record for info in self._backend.list(REPLICAS) if (record := self._read(info.key)) is not None]
        now, utc = _monotonic(), datetime.now(UTC)
        with self._lock:
            self._seen = {record.id: self._look(record, now) for record in records}
            return [record for record in records if _is_live(record, self._seen[record.id], now, utc)]

    def forget_gone(self) -> int:
        """Remove records that have not changed for FORGET_SECONDS. Returns their number."""
        oldest = datetime.now(UTC) - timedelta(seconds=FORGET_SECONDS)
        old = [info.key for info in self._backend.list(REPLICAS) if info.modified_at < oldest]
        for key in old:
            self._backend.delete(key)
        return len(old)

    def remove(self, replica: str) -> None:
        """Remove a replica's record, when the replica stops."""
        self._backend.delete(replica_key(replica))

    def _look(self, record: ReplicaRecord, now: float) -> _Seen:
        before = self._seen.get(record.id)
        if before is None or now - before.looked_at > record.live_seconds:  # a change since then may have been long ago
            return _Seen(record.updated_at, now, now)
        changed_at = before.changed_at if record.updated_at == before.updated_at else now
        return _Seen(record.updated_at, before.first_at, now, changed_at)

    def _read(self, key: str) -> ReplicaRecord | None:
        try:
            if (data := self._backend.get(key, MAX_REPLICA_BYTES)) is None:
                return None
            record = ReplicaRecord.model_validate_json(data)
            if replica_key(record.id) == key:  # else a copy, which would count as a change of the original
                return record
        except (ValidationError, DamagedBlob):
            pass
        log.warning("%s is not a readable replica record", key)
        return None


def _is_live(record: ReplicaRecord, seen: _Seen, now: float, utc: datetime) -> bool:
    """Whether a replica is live, by the last change that the reader saw.

    Until the reader has seen a change, the machines' clocks decide, for at most `live_seconds`.
    """
    if seen.changed_at is not None:
        return now - seen.changed_at <= record.live_seconds
    by_clocks = utc - parse_timestamp(record.updated_at) <= timedelta(seconds=record.live_seconds)
    return by_clocks and now - seen.first_at <= record.live_seconds


def _monotonic() -> float:
    return time.monotonic()
