"""The prompt store: publishes versions, moves aliases, reads the state, fetches blobs, follows changes.

All methods are synchronous and thread-safe. Every change is one commit that is built from the newest state and appended
to the log (`shared.store.log`). A writer that loses the race for a revision reads the winning commit and builds its
commit again. So version numbers have no gaps, aliases are compare-and-set, and several operations take effect together,
although the backend only provides create-if-absent.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable, Sequence

from shared.errors import DamagedBlob, InvalidInput, NotFound, PreconditionFailed, SoftPromptError, Unavailable
from shared.names import DEFAULT_ALIAS, check_alias, check_name, version_name
from shared.prompt.digest import MAX_BLOB_BYTES, check_digest, digest_of
from shared.prompt.manifest import Manifest, utc_now
from shared.store.alias import ANYTHING, Expected, Targets, as_targets, check_expected
from shared.store.base import ObjectBackend
from shared.store.commit import (
    MAX_SUMMARY_METRICS,
    AliasMoved,
    Commit,
    Operation,
    VersionDeleted,
    VersionPublished,
    VersionSummary,
)
from shared.store.follower import Changes, LogFollower
from shared.store.garbage import GRACE_SECONDS, BlobCollector, expired_versions
from shared.store.identity import StoreIdentity
from shared.store.index import StoreIndex, VersionRecord
from shared.store.layout import blob_key
from shared.store.log import Appended, CommitLog
from shared.store.replicas import ReplicaDirectory, ReplicaRecord

log = logging.getLogger(__name__)

SNAPSHOT_EVERY = 100
"""Number of commits between snapshots."""

_COMMIT_SECONDS = 30.0
_MAX_DELETED_AT_ONCE = 1000

PublishedVersion = VersionRecord


class PromptStore:
    """One process's access to a store. While the store is unavailable, all methods but `index` raise Unavailable."""

    def __init__(self, backend: ObjectBackend) -> None:
        self.backend = backend
        self._log = CommitLog(backend)
        self._identity = StoreIdentity(backend)
        self._follower = LogFollower(self._log, self._identity)
        self._replicas = ReplicaDirectory(backend)

    @property
    def id(self) -> str:
        """The store's random id."""
        return self._identity.id

    @property
    def poll_seconds(self) -> float:
        """Recommended interval between polls of a watcher."""
        return self.backend.poll_seconds

    def index(self) -> StoreIndex:
        """The state as last read, without any input/output."""
        return self._follower.index

    def refresh(self, check: bool = False) -> StoreIndex:
        """Read the log to its end; if there is nothing new, this is one small read.

        `check`: also check now, not only once per minute, whether the log was truncated or the store was replaced.
        Raises DamagedBlob if an entry can't be read.
        """
        return self._follower.refresh(check)

    def changes_since(self, revision: int | None) -> Changes:
        """Refresh and return all commits after `revision` in order; None: only the current state."""
        return self._follower.changes_since(revision)

    def recent_commits(self) -> tuple[Commit, ...]:
        """The last commits that this process has read, oldest first, without any input/output."""
        return self._follower.recent_commits()

    def publish(
        self,
        prompt: str,
        data: bytes,
        *,
        job: str,
        alias: str | None = DEFAULT_ALIAS,
        expected: Expected = ANYTHING,
        actor: str = "",
        permit: Callable[[], None] = lambda: None,
    ) -> PublishedVersion:
        """Publish the blob as the prompt's next version and, in the same commit, move `alias` to it (None: no alias).

        If `job` has already published a version, returns that version. `expected` is the alias's required current
        value; otherwise raises Conflict and publishes nothing. `permit` is called last before each attempt to commit;
        an exception from it ends the publication. Raises DamagedBlob for a blob that no replica would load.
        """
        from shared.prompt.blob import decode_blob  # needs torch, without which a process can follow a store

        check_name(prompt, "prompt")
        _check_length(job, "job", least=1)
        if alias is not None:
            check_alias(alias, "alias")
        blob = decode_blob(data)
        if blob.manifest.prompt != prompt:
            raise InvalidInput.of("blob", f"its manifest is for prompt {blob.manifest.prompt!r}, not {prompt!r}")

        def build(index: StoreIndex) -> list[Operation]:
            record = index.prompts.get(prompt)
            if record and record.version_of_job(job):
                return []
            if record and (stone := record.tombstone_of_job(job)):
                raise PreconditionFailed(
                    f"{version_name(prompt, stone.version)} of this job has been deleted", version=stone.version
                )
            version = record.latest_version + 1 if record else 1
            ops: list[Operation] = [
                VersionPublished(prompt, version, blob.digest, len(data), job, summary_of(blob.manifest))
            ]
            if alias is not None:
                check_expected(record, prompt, alias, expected)
                ops.append(AliasMoved(prompt, alias, as_targets(version)))
            permit()
            return ops

        if build(self.refresh()):  # else already published: nothing to upload
            self.commit(actor, build, (blob.digest, data))
        published = self.index().prompt(prompt).version_of_job(job)
        if published is None:
            raise PreconditionFailed(f"the version of {prompt!r} that this job published was deleted immediately")
        return published

    def set_alias(
        self, prompt: str, alias: str, target: Targets | None, expected: Expected = ANYTHING, actor: str = ""
    ) -> int:
        """Move an alias to a version or to weighted versions, or remove it (None). Returns the resulting revision.

        `expected` is its required current value (a version, targets, or None for no alias); otherwise raises Conflict
        with the `current` value.
        """
        check_name(prompt, "prompt")
        check_alias(alias, "alias")
        targets = () if target is None else as_targets(target)

        def build(index: StoreIndex) -> list[Operation]:
            record = index.prompt(prompt)
            for wanted in targets:
                record.version(wanted.version)
            check_expected(record, prompt, alias, expected)
            current = record.aliases.get(alias)
            if current is None and not targets:
                raise NotFound("alias", f"{prompt}@{alias}")
            return [] if current and current.targets == targets else [AliasMoved(prompt, alias, targets)]

        return self.commit(actor, build)

    def delete_version(self, prompt: str, version: int, actor: str = "") -> int:
        """Remove a version from the index; its number is never used again. Returns the new revision.

        Raises PreconditionFailed if an alias names the version.
        """
        check_name(prompt, "prompt")

        def build(index: StoreIndex) -> list[Operation]:
            record = index.prompt(prompt)
            record.version(version)
            if aliases := record.aliases_of(version):
                names = ", ".join(f"{prompt}@{name}" for name in aliases)
                raise PreconditionFailed(
                    f"{version_name(prompt, version)} is named by {names}: move the alias first", aliases=names
                )
            return [VersionDeleted(prompt, version)]

        return self.commit(actor, build)

    def apply_retention(self, prompt: str, keep_last: int, actor: str = "") -> list[int]:
        """Delete all but the newest `keep_last` versions, except aliased ones, in one commit; returns their numbers."""
        deleted: list[int] = []

        def build(index: StoreIndex) -> list[Operation]:
            deleted[:] = expired_versions(index.prompt(prompt), keep_last)[:_MAX_DELETED_AT_ONCE]
            return [VersionDeleted(prompt, version) for version in deleted]

        self.commit(actor, build)
        return deleted

    def fetch(self, digest: str) -> bytes:
        """The bytes of a blob. Raises NotFound, or DamagedBlob if the bytes don't have this digest."""
        data = self.backend.get(blob_key(digest), MAX_BLOB_BYTES)
        if data is None:
            raise NotFound("blob", check_digest(digest))
        if (found := digest_of(data)) != digest:
            raise DamagedBlob(f"the stored bytes of {digest} have digest {found}", digest=digest, found=found)
        return data

    def write_snapshot(self) -> int:
        """Write the current state as a snapshot, from which new readers start. Returns its revision."""
        index = self.refresh()
        self._log.write_snapshot(index)
        return index.revision

    def truncate_log(self, keep: int, at_least: int = 1) -> int:
        """Write a snapshot and remove all log entries but the last `keep`. Returns the number of removed entries.

        Does nothing if fewer than `at_least` entries could be removed, because each truncation writes a snapshot of the
        whole index. Watchers that are further behind than `keep` start again from the snapshot.
        """
        index = self._follower.refresh(check=True)
        up_to = index.revision - max(keep, 0)
        if up_to < self._log.horizon() + at_least:
            return 0
        self._log.write_snapshot(index)
        return self._log.truncate(up_to)

    def collect_unreferenced_blobs(
        self, grace_seconds: float = GRACE_SECONDS, stopped: Callable[[], bool] = lambda: False
    ) -> list[str]:
        """Remove blobs that no version has named for `grace_seconds`, until `stopped()`; returns their digests."""
        return BlobCollector(self.backend, lambda: self._follower.refresh(check=True), grace_seconds).collect(stopped)

    def forget_gone_replicas(self) -> int:
        """Remove old records of replicas that were killed. Returns their number."""
        return self._replicas.forget_gone()

    def list_replicas(self) -> list[ReplicaRecord]:
        """Records of the live replicas, sorted by id."""
        return self._replicas.list()

    def close(self) -> None:
        """Release the backend's connections."""
        self.backend.close()

    def commit(
        self, actor: str, build: Callable[[StoreIndex], Sequence[Operation]], blob: tuple[str, bytes] | None = None
    ) -> int:
        """Append the operations that `build` returns for the newest state, and retry until this succeeds.

        `blob`: digest and bytes that the operations name, written before them. Returns the commit's revision, or the
        current one if there are no operations.
        """
        existed = blob is not None and self.put_blob(*blob)
        revision = self._append(actor, build)
        if blob is not None and existed:
            self._keep_blob(*blob)
        return revision

    def put_blob(self, digest: str, data: bytes) -> bool:
        """Write a blob; returns whether it existed.

        An existing blob is written again, which repairs damage and protects it from collection as a new blob.
        """
        if self.backend.create(blob_key(digest), data):
            return False
        self.backend.put(blob_key(digest), data)
        return True

    def _append(self, actor: str, build: Callable[[StoreIndex], Sequence[Operation]]) -> int:
        _check_length(actor, "actor")
        txid = uuid.uuid4().hex
        deadline = time.monotonic() + _COMMIT_SECONDS
        pause_seconds = 0.002
        while True:
            index = self.refresh()
            if (mine := self._follower.find(txid)) is not None:  # an earlier attempt did succeed
                return mine.revision
            ops = tuple(build(index))
            if not ops:
                return index.revision
            self._check_same_store()
            commit = Commit(index.revision + 1, txid, utc_now(), actor, ops, store=self.id)
            outcome = self._log.append(commit)
            if outcome is Appended.MINE:
                self._committed(commit)
                return commit.revision
            if outcome is Appended.TRUNCATED:
                self._follower.restart()
            if time.monotonic() > deadline:
                raise Unavailable("the prompt store is too busy: every attempt to commit lost to another writer")
            time.sleep(random.uniform(0, pause_seconds))
            pause_seconds = min(2 * pause_seconds, self.poll_seconds)

    def _check_same_store(self) -> None:
        """Raises Unavailable if the store was replaced: a commit must not go to another store's log."""
        if not self._identity.is_same():
            self._follower.restart()
            raise Unavailable("the prompt store was replaced by another one; try again to write to the new one")

    def _committed(self, commit: Commit) -> None:
        """Apply a successful commit and write a snapshot if one is due; a failed snapshot is only logged."""
        self._follower.committed(commit)
        if commit.revision % SNAPSHOT_EVERY:
            return
        try:
            self.write_snapshot()
        except SoftPromptError as error:
            log.warning("writing the snapshot of revision %d failed: %s", commit.revision, error.message)

    def _keep_blob(self, digest: str, data: bytes) -> None:
        """Write a blob again if it is missing: a collector may have removed the old blob before the commit named it."""
        if self.backend.head(blob_key(digest)) is None:
            self.backend.put(blob_key(digest), data)


def summary_of(manifest: Manifest) -> VersionSummary:
    """What the log says about a version."""
    return VersionSummary(
        base_model=manifest.base_model.id[:200],
        base_model_fingerprint=manifest.base_model.fingerprint[:200],
        num_virtual_tokens=manifest.num_virtual_tokens,
        hidden_size=manifest.hidden_size,
        parent=manifest.parent,
        metrics=dict(list(manifest.metrics.items())[:MAX_SUMMARY_METRICS]),
        kind=manifest.kind.value,
    )


def _check_length(value: str, field: str, least: int = 0) -> None:
    if not least <= len(value) <= 200:
        raise InvalidInput.of(field, f"must have {least} to 200 characters, has {len(value)}")
