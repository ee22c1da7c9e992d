"""What happens to prompts on this replica, told to whoever counts it."""

from __future__ import annotations

from typing import Protocol

from inference_service.prompts.version import RefusalReason
from shared.store.index import VersionRecord


class PromptObserver(Protocol):
    """Called on the event loop."""

    def version_loaded(
        self, record: VersionRecord, load_seconds: float, publish_to_served_seconds: float | None
    ) -> None:
        """Passed all checks and can serve; the second time is None for versions that are older than this replica."""

    def version_refused(self, record: VersionRecord, reason: RefusalReason) -> None:
        """Quarantined."""

    def version_unavailable(self, record: VersionRecord) -> None:
        """Could not be loaded now; will be tried again."""

    def store_polled(self, revision: int) -> None:
        """The store answered."""

    def store_failed(self) -> None:
        """The store did not answer; what is loaded serves on."""


class NullPromptObserver:
    """Counts nothing."""

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
