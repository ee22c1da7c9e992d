"""A maintenance round of a store: removes old versions, log entries, unused blobs, old records and temporary files.

Every step is safe while other processes publish, watch and do maintenance (`docs/store.md`), so all trainers may run it
at the same time. If a step fails, the report says why, the other steps run, and the next round tries it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import Field

from shared.errors import SoftPromptError
from shared.security import audit
from shared.settings_part import SettingsPart
from shared.store.follower import MAX_REPLAYED
from shared.store.garbage import GRACE_SECONDS, expired_versions
from shared.store.store import PromptStore
from shared.store.usage import forget_refused

log = logging.getLogger(__name__)

ACTOR = "maintenance"


class MaintenanceSettings(SettingsPart):
    """What a maintenance round keeps. `trainer_service.config` inherits it."""

    keep_versions: int = Field(default=0, ge=0)
    """Number of newest versions of each prompt to keep, besides those that an alias names; others are deleted. 0: keep
    all.
    """
    blob_grace_seconds: float = Field(default=GRACE_SECONDS, ge=60, le=365 * 24 * 3600)
    """A blob that no version names is removed after this time; it must exceed the longest publication and the longest
    absence of a replica.
    """


class MaintenancePolicy(MaintenanceSettings):
    """What a maintenance round keeps, also what no operator needs to set."""

    keep_log_entries: int = MAX_REPLAYED
    """Number of log entries to keep. The log is truncated when it has twice as many."""


@dataclass
class MaintenanceReport:
    """What a maintenance round removed."""

    versions_deleted: int = 0
    log_entries_removed: int = 0
    blobs_removed: int = 0
    replicas_forgotten: int = 0
    leftovers_removed: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """Reasons of failed steps, by step."""

    @property
    def did_something(self) -> bool:
        """Whether anything was removed."""
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
    """Run one round. Stops early, between two removals, if `stopped` returns True.

    Each SoftPromptError is recorded in the report, not raised.
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


def _forget_usage(
    store: PromptStore, policy: MaintenancePolicy, report: MaintenanceReport, stopped: Callable[[], bool]
) -> None:
    report.leftovers_removed += forget_refused(store.backend)


_Step = Callable[[PromptStore, MaintenancePolicy, MaintenanceReport, Callable[[], bool]], None]
_STEPS: dict[str, _Step] = {
    "retention": _expire_versions,
    "log": _cut_log,
    "blobs": _collect_blobs,
    "replicas": _forget_replicas,
    "leftovers": _sweep,
    "usage": _forget_usage,
}
