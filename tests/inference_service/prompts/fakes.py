"""A store's index built by hand, and loads without an engine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import torch

from inference_service.prompts.version import RefusalReason, ServableVersion, VersionRefused, prefix_id_of
from inference_service.prompts.version_loader import VersionLoader
from shared.errors import Unavailable
from shared.prompt.manifest import utc_now
from shared.prompt.soft_prompt import SoftPrompt
from shared.store import AliasMoved, AliasTarget, Commit, StoreIndex, VersionDeleted, VersionPublished, VersionRecord
from shared.store.commit import VersionSummary
from shared.store.follower import Changes
from shared.store.replicas import ReplicaRecord

SUMMARY = VersionSummary("tiny", "sha256:model", 1, 4)


class Log:
    """Makes indexes, one commit at a time."""

    def __init__(self) -> None:
        self.index = StoreIndex()

    def commit(self, *ops: Any) -> StoreIndex:
        revision = self.index.revision + 1
        self.index = self.index.apply(Commit(revision, f"t{revision}", utc_now(), "test", ops))
        return self.index

    def publish(self, version: int, *, alias: str | None = "default", prompt: str = "tone") -> StoreIndex:
        digest = f"sha256:{version:064d}"
        ops: list[Any] = [VersionPublished(prompt, version, digest, 10, f"job-{prompt}-{version}", SUMMARY)]
        if alias is not None:
            ops.append(AliasMoved(prompt, alias, (AliasTarget(version),)))
        return self.commit(*ops)

    def move(self, *targets: tuple[int, int], alias: str = "default") -> StoreIndex:
        return self.commit(
            AliasMoved("tone", alias, tuple(AliasTarget(version, weight) for version, weight in targets))
        )

    def delete(self, version: int) -> StoreIndex:
        return self.commit(VersionDeleted("tone", version))

    def record(self, version: int) -> VersionRecord:
        return self.index.prompt("tone").version(version)


def loaded(record: VersionRecord) -> ServableVersion:
    """A version as the loader gives it; manifest and encoder are not looked at by registry and watcher."""
    nothing = cast(Any, None)
    return ServableVersion(
        record, nothing, SoftPrompt(torch.zeros(1, 4)), nothing, prefix_id_of(record), datetime.now(UTC)
    )


class FakeLoader(VersionLoader):
    """Loads at once, but for versions that are `refused` or `absent`; counts the attempts."""

    def __init__(self) -> None:
        self.refused: set[int] = set()
        self.absent: set[int] = set()
        self.broken: set[int] = set()
        self.attempts: list[int] = []

    async def load(self, record: VersionRecord) -> ServableVersion:
        self.attempts.append(record.version)
        if record.version in self.refused:
            raise VersionRefused(RefusalReason.DAMAGED, "cut short")
        if record.version in self.absent:
            raise Unavailable("the blob is not there")
        if record.version in self.broken:
            raise RuntimeError("a fault of the program")
        return loaded(record)


class FakeStore:
    """What the watcher polls."""

    def __init__(self, log: Log) -> None:
        self.log, self.id, self.unavailable = log, "first", False
        self.num_polls = 0
        self.replicas: list[ReplicaRecord] = []

    poll_seconds = 0.005

    def list_replicas(self) -> list[ReplicaRecord]:
        return self.replicas

    def changes_since(self, revision: int | None) -> Changes:
        self.num_polls += 1
        if self.unavailable:
            raise Unavailable("the store is unavailable")
        return Changes((), self.log.index, restarted=True)


class NullPromptObserver:
    """Ignores all events."""

    def version_loaded(
        self, record: VersionRecord, load_seconds: float, publish_to_served_seconds: float | None
    ) -> None:
        return

    def version_refused(self, record: VersionRecord, reason: RefusalReason) -> None:
        return

    def version_unavailable(self, record: VersionRecord) -> None:
        return

    def store_polled(self, revision: int) -> None:
        return

    def store_failed(self) -> None:
        return
