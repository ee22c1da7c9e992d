"""The prompt store: publish versions, move aliases, read the state, fetch blobs, follow changes. All of it synchronous
and thread-safe.

Every change is one commit appended to the log (`shared.store.log`), built against the state that it follows on; whoever
loses the race for a revision looks at what won and builds again. So versions have no gaps, aliases are compare-and-set,
and several operations become true together, on stores that can do no more than create-if-absent.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable, Sequence

from shared.errors import DamagedBlob, InvalidInput, NotFound, PreconditionFailed, SoftPromptError, Unavailable
from shared.names import DEFAULT_ALIAS, check_alias, check_name, version_name
from shared.prompt.blob import MAX_BLOB_BYTES, PromptBlob, check_digest, decode_blob, digest_of
from shared.prompt.manifest import utc_now
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
from shared.store.follower import MAX_REPLAYED, Changes, LogFollower
from shared.store.garbage import GRACE_SECONDS, BlobCollector, expired_versions
from shared.store.identity import StoreIdentity
from shared.store.index import StoreIndex, VersionRecord
from shared.store.layout import blob_key
from shared.store.log import Appended, CommitLog
from shared.store.replicas import ReplicaDirectory, ReplicaRecord

log = logging.getLogger(__name__)

SNAPSHOT_EVERY = 100

_COMMIT_SECONDS = 30.0
_MAX_DELETED_AT_ONCE = 1000

PublishedVersion = VersionRecord


class PromptStore:
    """One process's view of a store. Methods raise `Unavailable` while the store is away; `index` goes on answering."""

    def __init__(self, backend: ObjectBackend) -> None:
        self.backend = backend
        self._log = CommitLog(backend)
        self._identity = StoreIdentity(backend)
        self._follower = LogFollower(self._log, self._identity)
        self._replicas = ReplicaDirectory(backend)

    @property
    def id(self) -> str:
        return self._identity.id

    @property
    def poll_seconds(self) -> float:
        """How often a watcher should ask for news."""
        return self.backend.poll_seconds

    def index(self) -> StoreIndex:
        """The state as last read; costs nothing and never waits."""
        return self._follower.index

    def refresh(self, check: bool = False) -> StoreIndex:
        """Read the log to its end. With nothing new this is one small read. Raises DamagedBlob if an entry can't be
        read.

        `check` makes sure now, and not within a minute, that the log was not cut and the store is still the same one.
        """
        return self._follower.refresh(check)

    def changes_since(self, revision: int | None) -> Changes:
        """Refresh, then every commit after `revision` in order; None asks for the present state only."""
        return self._follower.changes_since(revision)

    def recent_commits(self) -> tuple[Commit, ...]:
        """The last commits that this process has read, oldest first; costs no read."""
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
        """Make the blob the prompt's next version and, in the same commit, move `alias` to it (None: move nothing).

        The same `job` publishing again gets the version that it has. `expected` is what the alias must name before;
        Conflict if it does not, and then nothing is published. `permit` is called before each attempt to commit, as the
        last thing; what it raises ends the publication. Raises DamagedBlob for a blob that no replica would load.
        """
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
            ops: list[Operation] = [VersionPublished(prompt, version, blob.digest, len(data), job, _summary(blob))]
            if alias is not None:
                check_expected(record, prompt, alias, expected)
                ops.append(AliasMoved(prompt, alias, as_targets(version)))
            permit()
            return ops

        if build(self.refresh()):  # known already, or refused: nothing to upload
            existed = self._put_blob(blob.digest, data)
            self._commit(actor, build)
            if existed:
                self._keep_blob(blob.digest, data)
        published = self.index().prompt(prompt).version_of_job(job)
        if published is None:
            raise PreconditionFailed(f"the version of {prompt!r} that this job published was deleted at once")
        return published

    def set_alias(
        self, prompt: str, alias: str, target: Targets | None, expected: Expected = ANYTHING, actor: str = ""
    ) -> int:
        """Move an alias to a version, to weighted versions, or (None) remove it. Returns the revision at which it
        holds.

        `expected`: what it must name now (a version, targets, or None for no alias), else Conflict with the `current`
        value.
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

        return self._commit(actor, build)

    def delete_version(self, prompt: str, version: int, actor: str = "") -> int:
        """Take the version out of the index; its number is never used again. PreconditionFailed while an alias names
        it.
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

        return self._commit(actor, build)

    def apply_retention(self, prompt: str, keep_last: int, actor: str = "") -> list[int]:
        """Delete the versions beyond the newest `keep_last` that no alias names, in one commit. Returns their numbers."""
        deleted: list[int] = []

        def build(index: StoreIndex) -> list[Operation]:
            deleted[:] = expired_versions(index.prompt(prompt), keep_last)[:_MAX_DELETED_AT_ONCE]
            return [VersionDeleted(prompt, version) for version in deleted]

        self._commit(actor, build)
        return deleted

    def fetch(self, digest: str) -> bytes:
        """The bytes of a version. Raises NotFound, or DamagedBlob if they are not what the digest says."""
        data = self.backend.get(blob_key(digest), MAX_BLOB_BYTES)
        if data is None:
            raise NotFound("blob", check_digest(digest))
        if (found := digest_of(data)) != digest:
            raise DamagedBlob(f"the stored bytes of {digest} have digest {found}", digest=digest, found=found)
        return data

    def write_snapshot(self) -> int:
        """Write the present state as one object, from which new readers start. Returns its revision."""
        index = self.refresh()
        self._log.write_snapshot(index)
        return index.revision

    def truncate_log(self, keep: int = MAX_REPLAYED, at_least: int = 1) -> int:
        """Remove log entries but the last `keep`, behind a snapshot. Live watchers notice nothing, or start from the
        snapshot.

        Nothing happens unless `at_least` so many could go: each cut writes a snapshot of the whole index. Returns how
        many entries went.
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
        """Remove blobs that no version has named for `grace_seconds`, until `stopped`. Returns their digests."""
        return BlobCollector(self.backend, lambda: self._follower.refresh(check=True), grace_seconds).collect(stopped)

    def forget_gone_replicas(self) -> int:
        """Remove the records of replicas that were killed long ago. Returns how many went."""
        return self._replicas.forget_gone()

    def put_replica(self, record: ReplicaRecord) -> None:
        """A replica's heartbeat: what it has loaded and refused."""
        self._replicas.put(record)

    def list_replicas(self) -> list[ReplicaRecord]:
        """The replicas whose heartbeat is fresh, by id."""
        return self._replicas.list()

    def remove_replica(self, replica: str) -> None:
        """A replica that stops in good order takes its record with it."""
        self._replicas.remove(replica)

    def close(self) -> None:
        self.backend.close()

    def _commit(self, actor: str, build: Callable[[StoreIndex], Sequence[Operation]]) -> int:
        """Append what `build` makes of the newest state, again and again until it stands. Nothing to do: the present
        revision.
        """
        _check_length(actor, "actor")
        txid = uuid.uuid4().hex
        deadline = time.monotonic() + _COMMIT_SECONDS
        pause_seconds = 0.002
        while True:
            index = self.refresh()
            if (mine := self._follower.find(txid)) is not None:  # an earlier attempt came through after all
                return mine.revision
            ops = tuple(build(index))
            if not ops:
                return index.revision
            self._check_same_store()
            commit = Commit(revision=index.revision + 1, txid=txid, time=utc_now(), actor=actor, ops=ops)
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
        """A commit that follows on one store's log must not land in another's."""
        if not self._identity.is_same():
            self._follower.restart()
            raise Unavailable("the prompt store was replaced by another one; trying again writes to that one")

    def _committed(self, commit: Commit) -> None:
        """The commit stands; the snapshot is for later readers, and its failure undoes nothing."""
        self._follower.committed(commit)
        if commit.revision % SNAPSHOT_EVERY:
            return
        try:
            self.write_snapshot()
        except SoftPromptError as error:
            log.warning("no snapshot was written at revision %d: %s", commit.revision, error.message)

    def _put_blob(self, digest: str, data: bytes) -> bool:
        """Whether it was there before. Then it is written again: that heals damage and makes it too young to be
        collected.
        """
        if self.backend.create(blob_key(digest), data):
            return False
        self.backend.put(blob_key(digest), data)
        return True

    def _keep_blob(self, digest: str, data: bytes) -> None:
        """A collector that had already chosen an old blob may have removed it before our commit named it."""
        if self.backend.head(blob_key(digest)) is None:
            self.backend.put(blob_key(digest), data)


def _summary(blob: PromptBlob) -> VersionSummary:
    manifest = blob.manifest
    return VersionSummary(
        base_model=manifest.base_model.id[:200],
        base_model_fingerprint=manifest.base_model.fingerprint[:200],
        num_virtual_tokens=manifest.num_virtual_tokens,
        hidden_size=manifest.hidden_size,
        parent=manifest.parent,
        metrics=dict(list(manifest.metrics.items())[:MAX_SUMMARY_METRICS]),
    )


def _check_length(value: str, field: str, least: int = 0) -> None:
    if not least <= len(value) <= 200:
        raise InvalidInput.of(field, f"must have {least} to 200 characters, has {len(value)}")
