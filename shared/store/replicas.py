"""What each replica says of itself: a small record that it overwrites every few seconds, outside the log.

Records are hints for people (`prompts status`) and for "served by all"; nothing about versions depends on them.

Whether a replica is live is told by its record's changes, on the reader's own clock, once the reader has looked at it
for a while. At the first look only the two machines' clocks can be compared; the tolerated skew is `LIVE_SECONDS`.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import DamagedBlob, InvalidInput
from shared.prompt.manifest import Timestamp, parse_timestamp, utc_now
from shared.store.base import ObjectBackend
from shared.store.commit import Name, ReplicaId, VersionNumber
from shared.store.layout import MAX_REPLICA_BYTES, REPLICAS, replica_key

log = logging.getLogger(__name__)

LIVE_SECONDS = 30.0
"""A replica that has told nothing for so long is gone; one that tells less often is given the time of three heartbeats.
"""

FORGET_SECONDS = 24 * 3600.0

_RECORD = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class LoadedVersion(BaseModel):
    """A version that this replica serves. `publish_to_served_seconds` by the clocks of trainer and replica."""

    model_config = _RECORD
    prompt: Name
    version: VersionNumber
    digest: str = Field(max_length=100)
    loaded_at: Timestamp
    publish_to_served_seconds: float | None = None


class RefusedVersion(BaseModel):
    """A version that this replica will not serve, and why."""

    model_config = _RECORD
    prompt: Name
    version: VersionNumber
    digest: str = Field(max_length=100)
    reason: str = Field(max_length=2000)


class ReplicaRecord(BaseModel):
    """One replica at `updated_at`."""

    model_config = _RECORD
    id: ReplicaId
    base_model: str = Field(default="", max_length=200)
    base_model_fingerprint: str = Field(default="", max_length=200)
    revision: int = Field(default=0, ge=0)
    started_at: Timestamp
    updated_at: Timestamp = Field(default_factory=utc_now)
    heartbeat_seconds: float = Field(default=5.0, gt=0, le=86_400)
    """How often it tells."""
    loaded: tuple[LoadedVersion, ...] = ()
    refused: tuple[RefusedVersion, ...] = ()
    recent: tuple[Name, ...] = ()
    """Prompts that were used last here, the latest first: what a replica that starts loads first."""

    @property
    def live_seconds(self) -> float:
        """Without a change for so long it is gone."""
        return max(LIVE_SECONDS, 3 * self.heartbeat_seconds)


@dataclass(frozen=True)
class _Seen:
    """A record as it was at the last looks. `changed_at` on the reader's monotonic clock; None: no change was seen yet."""

    updated_at: Timestamp
    first_at: float
    looked_at: float
    changed_at: float | None = None


class ReplicaDirectory:
    """The records of a fleet."""

    def __init__(self, backend: ObjectBackend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}

    def put(self, record: ReplicaRecord) -> None:
        data = record.model_dump_json().encode()
        if len(data) > MAX_REPLICA_BYTES:
            raise InvalidInput.of(
                "replica", f"the record takes {len(data)} bytes; at most {MAX_REPLICA_BYTES} are allowed"
            )
        self._backend.put(replica_key(record.id), data)

    def list(self) -> list[ReplicaRecord]:
        """The live replicas, by id. A record that can't be read is logged and passed over."""
        records = [record for info in self._backend.list(REPLICAS) if (record := self._read(info.key)) is not None]
        now, utc = _monotonic(), datetime.now(UTC)
        with self._lock:
            self._seen = {record.id: self._look(record, now) for record in records}
            return [record for record in records if _is_live(record, self._seen[record.id], now, utc)]

    def forget_gone(self, older_than_seconds: float = FORGET_SECONDS) -> int:
        """Remove what replicas left that were killed long ago. Returns how many records went."""
        oldest = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        gone = [info.key for info in self._backend.list(REPLICAS) if info.modified_at < oldest]
        for key in gone:
            self._backend.delete(key)
        return len(gone)

    def remove(self, replica: str) -> None:
        """A replica that stops in good order takes its record with it."""
        self._backend.delete(replica_key(replica))

    def _look(self, record: ReplicaRecord, now: float) -> _Seen:
        before = self._seen.get(record.id)
        if before is None or now - before.looked_at > record.live_seconds:  # a change since then may be old
            return _Seen(record.updated_at, now, now)
        changed_at = before.changed_at if record.updated_at == before.updated_at else now
        return _Seen(record.updated_at, before.first_at, now, changed_at)

    def _read(self, key: str) -> ReplicaRecord | None:
        try:
            data = self._backend.get(key, MAX_REPLICA_BYTES)
            return None if data is None else ReplicaRecord.model_validate_json(data)
        except (ValidationError, DamagedBlob):
            log.warning("%s is not a readable replica record", key)
            return None


def _is_live(record: ReplicaRecord, seen: _Seen, now: float, utc: datetime) -> bool:
    """By the last change that the reader saw; before it saw one, by the clocks of both, but not for longer than a live
    one is silent.
    """
    if seen.changed_at is not None:
        return now - seen.changed_at <= record.live_seconds
    by_clocks = utc - parse_timestamp(record.updated_at) <= timedelta(seconds=record.live_seconds)
    return by_clocks and now - seen.first_at <= record.live_seconds


def _monotonic() -> float:
    return time.monotonic()
