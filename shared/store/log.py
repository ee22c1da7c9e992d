"""The commit log on a backend: appends and reads entries, truncates the log, and keeps snapshots.

It does not interpret the entries.

Truncation needs care. A writer that was suspended while the log advanced and was truncated could create an entry in the
removed part, and a suspended reader could accept it. So the truncation is announced first (`truncated/{revision}`,
create-only; the highest one counts), and writers and readers check it *after* they have appended or read an entry: an
entry at or below that revision is not valid.
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
    """The result of `CommitLog.append`."""

    MINE = "the entry is in the log"
    TAKEN = "another writer has this revision, or the store refused without a reason; read the log again"
    TRUNCATED = "this revision has been truncated; start again from a snapshot"


class CommitLog:
    """The log on a backend. Thread-safe; all state is in the backend."""

    def __init__(self, backend: ObjectBackend) -> None:
        self._backend = backend

    def read(self, revision: int) -> Commit | None:
        """The entry, or None if there is none (not yet, or no longer). Check `horizon` before using an entry."""
        data = self._backend.get(log_key(revision), MAX_COMMIT_BYTES)
        return None if data is None else decode_commit(data, revision)

    def append(self, commit: Commit) -> Appended:
        """Append an entry. Raises Unavailable if the outcome is unknown; the entry may then still be in the log."""
        try:
            created = self._backend.create(log_key(commit.revision), encode_commit(commit))
        except Unavailable:
            if not self._is_written(commit):
                raise
            created = True  # only the acknowledgement was lost
        if not created and not self._is_written(commit):
            return Appended.TAKEN
        if self._horizon_after_append() >= commit.revision:
            self._backend.delete(log_key(commit.revision))
            return Appended.TRUNCATED
        return Appended.MINE

    def horizon(self) -> int:
        """The highest truncated revision; 0 if the log is complete."""
        return max(self._revisions(TRUNCATED), default=0)

    def newest_snapshot(self) -> StoreIndex:
        """The state in the newest readable snapshot, or the empty state.

        Raises Unavailable if the log has been truncated and no readable snapshot covers the truncated part.
        """
        for revision in sorted(self._revisions(SNAPSHOTS), reverse=True):
            data = self._backend.get(snapshot_key(revision), MAX_SNAPSHOT_BYTES)
            if data is None:
                continue  # removed after the list was read
            try:
                return self._checked(decode_snapshot(data, revision))
            except DamagedBlob as error:
                log.error("a snapshot is damaged; trying an older one: %s", error.message)
        return self._checked(StoreIndex())

    def write_snapshot(self, index: StoreIndex) -> None:
        """Create a snapshot of this state and remove all but the newest few snapshots."""
        self._backend.create(snapshot_key(index.revision), encode_snapshot(index))
        for revision in sorted(self._revisions(SNAPSHOTS))[:-_KEPT_SNAPSHOTS]:
            self._backend.delete(snapshot_key(revision))

    def truncate(self, up_to: int) -> int:
        """Remove entries 1 to `up_to`; returns how many. Raises ValueError without a snapshot at or after `up_to`."""
        if max(self._revisions(SNAPSHOTS), default=0) < up_to:
            raise ValueError(f"no snapshot at or after revision {up_to}")
        self._backend.create(truncated_key(up_to), b"{}")
        entries = [revision for revision in self._revisions(LOG) if revision <= self.horizon()]
        for revision in entries:
            self._backend.delete(log_key(revision))
        for revision in sorted(self._revisions(TRUNCATED))[:-1]:
            self._backend.delete(truncated_key(revision))
        return len(entries)

    def _is_written(self, commit: Commit) -> bool:
        found = self.read(commit.revision)
        return found is not None and found.txid == commit.txid

    def _horizon_after_append(self) -> int:
        """`horizon`, tried a few times, because the outcome of a written entry is unknown if this check fails."""
        for _ in range(_CHECKS_AFTER_APPEND - 1):
            try:
                return self.horizon()
            except Unavailable:
                continue
        return self.horizon()

    def _checked(self, index: StoreIndex) -> StoreIndex:
        if self.horizon() > index.revision:
            raise Unavailable(
                "the prompt store's log has been truncated, and the snapshot of the truncated part can't be read"
            )
        return index

    def _revisions(self, prefix: str) -> list[int]:
        revisions = (revision_in(info.key) for info in self._backend.list(prefix))
        return [revision for revision in revisions if revision is not None]
