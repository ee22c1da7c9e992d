"""What each replica says of itself: a small record that it overwrites every few seconds, outside the log.

Records are hints for people (`prompts status`) and for "served by all"; nothing about versions depends on them.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import DamagedBlob, InvalidInput
from shared.manifest import Timestamp, parse_timestamp, utc_now
from shared.store.base import ObjectBackend
from shared.store.commit import Name, ReplicaId, VersionNumber
from shared.store.layout import MAX_REPLICA_BYTES, REPLICAS, replica_key

log = logging.getLogger(__name__)

LIVE_SECONDS = 30.0
"""A replica that has told nothing for so long is gone; one that tells less often is given the time of three heartbeats."""

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

    def is_live(self, now: datetime) -> bool:
        return now - parse_timestamp(self.updated_at) <= timedelta(seconds=max(LIVE_SECONDS, 3 * self.heartbeat_seconds))


class ReplicaDirectory:
    """The records of a fleet."""

    def __init__(self, backend: ObjectBackend) -> None:
        self._backend = backend

    def put(self, record: ReplicaRecord) -> None:
        data = record.model_dump_json().encode()
        if len(data) > MAX_REPLICA_BYTES:
            raise InvalidInput.of("replica", f"the record takes {len(data)} bytes; at most {MAX_REPLICA_BYTES} are allowed")
        self._backend.put(replica_key(record.id), data)

    def list(self) -> list[ReplicaRecord]:
        """The live replicas, by id. A record that can't be read is logged and passed over."""
        now = datetime.now(UTC)
        records = (self._read(info.key) for info in self._backend.list(REPLICAS))
        return [record for record in records if record is not None and record.is_live(now)]

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

    def _read(self, key: str) -> ReplicaRecord | None:
        try:
            data = self._backend.get(key, MAX_REPLICA_BYTES)
            return None if data is None else ReplicaRecord.model_validate_json(data)
        except (ValidationError, DamagedBlob):
            log.warning("%s is not a readable replica record", key)
            return None
