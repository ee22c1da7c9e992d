"""One round of keeping a store tidy: old versions, old log entries, blobs and records that nobody wants, what dead
writers left.

Every step is safe beside publishers, watchers and other maintainers (`docs/store.md`), so any number of trainers may do
this at once; what one has done the others find done. A step that fails is told and leaves the rest to the other steps
and to the next round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from shared.errors import SoftPromptError
from shared.security import audit
from shared.store.follower import MAX_REPLAYED
from shared.store.garbage import GRACE_SECONDS, expired_versions
from shared.store.store import PromptStore

log = logging.getLogger(__name__)

ACTOR = "maintenance"


@dataclass(frozen=True)
class MaintenancePolicy:
    """What is kept."""

    keep_versions: int = 0
    """Of each prompt the newest so many, and all that aliases name; 0: all."""
    keep_log_entries: int = MAX_REPLAYED
    """The log is cut when twice as many have gathered."""
    blob_grace_seconds: float = GRACE_SECONDS
    """A blob that no version names stays that long."""


@dataclass
class MaintenanceReport:
    """What a round did."""

    versions_deleted: int = 0
    log_entries_removed: int = 0
    blobs_removed: int = 0
    replicas_forgotten: int = 0
    leftovers_removed: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """By step, why it failed."""

    @property
    def did_something(self) -> bool:
        return any(
            (
                self.versions_deleted,
                self.log_entries_removed,
                self.blobs_removed,
                self.replicas_forgotten,
                self.leftovers_removed,
            )
        )


def maintain(
    store: PromptStore, policy: MaintenancePolicy, stopped: Callable[[], bool] = lambda: False
) -> MaintenanceReport:
    """One round; ends early, between two things, when `stopped` says so. Never raises a SoftPromptError: it is in the
    report.
    """
    report = MaintenanceReport()
    for name, step in _STEPS.items():
        if stopped():
            break
        try:
            step(store, policy, report, stopped)
        except SoftPromptError as error:
            report.failures[name] = error.message
    return report


def _expire_versions(
    store: PromptStore, policy: MaintenancePolicy, report: MaintenanceReport, stopped: Callable[[], bool]
) -> None:
    if not policy.keep_versions:
        return
    index = store.refresh()
    for prompt in index.prompts.values():
        if stopped():
            return
        if expired_versions(prompt, policy.keep_versions):
            deleted = store.apply_retention(prompt.name, policy.keep_versions, ACTOR)
            audit.record("retention", "OK", {"caller": ACTOR, "prompt": prompt.name, "versions": deleted})
            log.info(
                "versions expired",
                extra={"fields": {"prompt": prompt.name, "versions": deleted, "kept": policy.keep_versions}},
            )
            report.versions_deleted += len(deleted)


def _cut_log(
    store: PromptStore, policy: MaintenancePolicy, report: MaintenanceReport, stopped: Callable[[], bool]
) -> None:
    report.log_entries_removed = store.truncate_log(policy.keep_log_entries, at_least=policy.keep_log_entries)


def _collect_blobs(
    store: PromptStore, policy: MaintenancePolicy, report: MaintenanceReport, stopped: Callable[[], bool]
) -> None:
    report.blobs_removed = len(store.collect_unreferenced_blobs(policy.blob_grace_seconds, stopped))


def _forget_replicas(
    store: PromptStore, policy: MaintenancePolicy, report: MaintenanceReport, stopped: Callable[[], bool]
) -> None:
    report.replicas_forgotten = store.forget_gone_replicas()


def _sweep(
    store: PromptStore, policy: MaintenancePolicy, report: MaintenanceReport, stopped: Callable[[], bool]
) -> None:
    report.leftovers_removed = store.backend.sweep()


_Step = Callable[[PromptStore, MaintenancePolicy, MaintenanceReport, Callable[[], bool]], None]
_STEPS: dict[str, _Step] = {
    "retention": _expire_versions,
    "log": _cut_log,
    "blobs": _collect_blobs,
    "replicas": _forget_replicas,
    "leftovers": _sweep,
}
