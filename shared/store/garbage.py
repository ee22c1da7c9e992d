"""Finds old versions, and removes blobs that no version names, safely while others publish and watch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from shared.errors import InvalidInput
from shared.prompt.digest import MAX_BLOB_BYTES
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

    Two kinds are kept for the grace period: new blobs, since a publisher may not have committed yet, and blobs of
    deleted versions, since a replica may not have noticed the deletion. A publisher whose blob already exists writes it
    again, so that it counts as new, and checks after its commit that it still exists. If a commit names a blob while it
    is being removed, the collector writes it back.
    """

    def __init__(self, backend: ObjectBackend, read_index: Callable[[], StoreIndex], grace_seconds: float) -> None:
        self._backend = backend
        self._read_index = read_index
        self._oldest = datetime.now(UTC) - timedelta(seconds=grace_seconds)

    def collect(self, stopped: Callable[[], bool]) -> list[str]:
        """Remove the blobs and return their digests. Stops early if `stopped` returns True."""
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
            log.info("%s was published during its removal and has been restored", digest)
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
