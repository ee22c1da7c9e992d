"""The interface through which events of prompts on this replica are counted."""

from __future__ import annotations

from typing import Protocol

from inference_service.prompts.version import RefusalReason
from shared.store.index import VersionRecord


class PromptObserver(Protocol):
    """Receives events of prompt versions and the store, on the event loop."""

    def version_loaded(
        self, record: VersionRecord, load_seconds: float, publish_to_served_seconds: float | None
    ) -> None:
        """The version can serve. `publish_to_served_seconds` is None if it is older than this replica."""

    def version_refused(self, record: VersionRecord, reason: RefusalReason) -> None:
        """The version was quarantined."""

    def version_unavailable(self, record: VersionRecord) -> None:
        """The version could not be loaded now; the load is retried."""

    def store_polled(self, revision: int) -> None:
        """The store answered a poll."""

    def store_failed(self) -> None:
        """The store did not answer; loaded versions keep serving."""
