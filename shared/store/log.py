"""The commit log on a backend: append an entry, read one, cut off the old ones, keep snapshots. Knows nothing of what
entries mean.

Cutting off is the delicate part. A writer that slept while the log moved on and was cut could create an entry in the
part that is gone, and a reader that slept as long could believe it. So the cut is announced first
(`truncated/{revision}`, create-only: the highest one holds), and whoever appended or read an entry looks there
*afterwards*: at or below the cut, the entry never was.
"""

from __future__ import annotations

import logging
from enum import Enum

from shared.errors import DamagedBlob, Unavailable
from shared.store.base import ObjectBackend
from shared.store.commit import Commit, decode_commit, encode_commit
from shared.store.index import StoreIndex
from shared.store.layout import (
    LOG,
    MAX_COMMIT_BYTES,
    MAX_SNAPSHOT_BYTES,
    SNAPSHOTS,
    TRUNCATED,
    log_key,
    revision_in,
    snapshot_key,
    truncated_key,
)
from shared.store.snapshot import decode_snapshot, encode_snapshot

log = logging.getLogger(__name__)

_KEPT_SNAPSHOTS = 2
_CHECKS_AFTER_APPEND = 3


class Appended(Enum):
    MINE = "the entry stands"
    TAKEN = "another writer has this revision, or the store refused for no reason; look again"
    TRUNCATED = "this revision is below the cut; start again from a snapshot"


class CommitLog:
    """Stateless and thread-safe; all state is in the backend."""

    def __init__(self, backend: ObjectBackend) -> None:
        self._backend = backend

    def read(self, revision: int) -> Commit | None:
        """The entry, or None if it is not there (yet, or any more). Check `horizon` before believing an entry."""
        data = self._backend.get(log_key(revision), MAX_COMMIT_BYTES)
        return None if data is None else decode_commit(data, revision)

    def append(self, commit: Commit) -> Appended:
        """Raises Unavailable if the entry is not known to stand; it may still come to stand if the store was cut off
        half-way.
        """
        try:
            created = self._backend.create(log_key(commit.revision), encode_commit(commit))
        except Unavailable:
            if not self._stands(commit):
                raise
            created = True  # the acknowledgement was lost, the entry was not
        if not created and not self._stands(commit):
            return Appended.TAKEN
        if self._horizon_after_append() >= commit.revision:
            self._backend.delete(log_key(commit.revision))
            return Appended.TRUNCATED
        return Appended.MINE

    def horizon(self) -> int:
        """The highest revision whose entry may be gone; 0 while the log is whole."""
        return max(self._revisions(TRUNCATED), default=0)

    def newest_snapshot(self) -> StoreIndex:
        """The newest readable snapshot, or the empty state. Raises Unavailable if the log has been cut and no snapshot
        bridges the cut.
        """
        for revision in sorted(self._revisions(SNAPSHOTS), reverse=True):
            data = self._backend.get(snapshot_key(revision), MAX_SNAPSHOT_BYTES)
            if data is None:
                continue  # replaced by a newer one since it was listed
            try:
                return self._bridging(decode_snapshot(data, revision))
            except DamagedBlob as error:
                log.error("snapshot is damaged, trying an older one: %s", error.message)
        return self._bridging(StoreIndex())

    def write_snapshot(self, index: StoreIndex) -> None:
        """Create the snapshot of this state and remove all but the newest few."""
        self._backend.create(snapshot_key(index.revision), encode_snapshot(index))
        for revision in sorted(self._revisions(SNAPSHOTS))[:-_KEPT_SNAPSHOTS]:
            self._backend.delete(snapshot_key(revision))

    def truncate(self, up_to: int) -> int:
        """Remove the entries of revisions 1 to `up_to`; a snapshot at or after it must exist. Returns how many were
        removed.
        """
        if max(self._revisions(SNAPSHOTS), default=0) < up_to:
            raise ValueError(f"no snapshot at or after revision {up_to}")
        self._backend.create(truncated_key(up_to), b"{}")
        entries = [revision for revision in self._revisions(LOG) if revision <= self.horizon()]
        for revision in entries:
            self._backend.delete(log_key(revision))
        for revision in sorted(self._revisions(TRUNCATED))[:-1]:
            self._backend.delete(truncated_key(revision))
        return len(entries)

    def _stands(self, commit: Commit) -> bool:
        found = self.read(commit.revision)
        return found is not None and found.txid == commit.txid

    def _horizon_after_append(self) -> int:
        """The entry is written: a store that goes away this moment gets a few more chances before the outcome is called
        unknown.
        """
        for _ in range(_CHECKS_AFTER_APPEND - 1):
            try:
                return self.horizon()
            except Unavailable:
                continue
        return self.horizon()

    def _bridging(self, index: StoreIndex) -> StoreIndex:
        if self.horizon() > index.revision:
            raise Unavailable("the prompt store's log has been cut and the snapshot that covers the cut can't be read")
        return index

    def _revisions(self, prefix: str) -> list[int]:
        revisions = (revision_in(info.key) for info in self._backend.list(prefix))
        return [revision for revision in revisions if revision is not None]
