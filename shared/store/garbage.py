"""What may go: old versions by a retention rule, and blobs that no version names. Safe beside publishers and watchers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from shared.errors import InvalidInput
from shared.prompt.blob import MAX_BLOB_BYTES
from shared.prompt.manifest import parse_timestamp
from shared.store.base import ObjectBackend
from shared.store.index import PromptRecord, StoreIndex
from shared.store.layout import BLOBS, digest_in

log = logging.getLogger(__name__)

GRACE_SECONDS = 24 * 3600.0


def expired_versions(prompt: PromptRecord, keep_last: int) -> list[int]:
    """Versions that are neither among the newest `keep_last` nor named by an alias, oldest first."""
    if keep_last < 1:
        raise InvalidInput.of("keep_last", f"must be at least 1, not {keep_last}")
    aliased = {target.version for alias in prompt.aliases.values() for target in alias.targets}
    return [version for version in sorted(prompt.versions)[:-keep_last] if version not in aliased]


class BlobCollector:
    """Removes blobs that no version names.

    A blob younger than the grace may be a publisher's, between its upload and its commit; one whose version was deleted
    within the grace may still be wanted by a replica that has not heard. A publisher that finds its blob there already
    makes it young again, and looks after its commit whether it is still there; so here a blob is put back if a commit
    came to name it while it was removed.
    """

    def __init__(self, backend: ObjectBackend, read_index: Callable[[], StoreIndex], grace_seconds: float) -> None:
        self._backend = backend
        self._read_index = read_index
        self._oldest = datetime.now(UTC) - timedelta(seconds=grace_seconds)

    def collect(self, stopped: Callable[[], bool]) -> list[str]:
        """The digests of the blobs that were removed; as far as it came when `stopped` said so."""
        old = [
            (info.key, digest_in(info.key)) for info in self._backend.list(BLOBS) if info.modified_at <= self._oldest
        ]
        wanted = self._wanted()
        candidates = [(key, digest) for key, digest in old if digest is not None and digest not in wanted]
        return [digest for key, digest in candidates if not stopped() and self._remove(key, digest)]

    def _remove(self, key: str, digest: str) -> bool:
        info = self._backend.head(key)
        if info is None or info.modified_at > self._oldest or digest in self._wanted():
            return False
        data = self._backend.get(key, MAX_BLOB_BYTES)
        self._backend.delete(key)
        if data is not None and digest in self._wanted():
            self._backend.put(key, data)
            log.info("%s was published while it was collected, and put back", digest)
            return False
        return True

    def _wanted(self) -> set[str]:
        index = self._read_index()
        wanted = {record.digest for record in index.versions()}
        for prompt in index.prompts.values():
            wanted.update(
                stone.digest for stone in prompt.tombstones if parse_timestamp(stone.deleted_at) > self._oldest
            )
        return wanted
