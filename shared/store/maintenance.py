"""A maintenance round of a store: removes old versions, log entries, unused blobs, old records and temporary files.

Every step is safe while other processes publish, watch and do maintenance (`docs/store.md`), so all trainers may run it
at the same time. If a step fails, the report says why, the other steps run, and the next round tries it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
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
        return any(value for name, value in vars(self).items() if name != "failures")


def maintain(
    store: PromptStore, policy: MaintenancePolicy, stopped: Callable[[], bool] = lambda: False
) -> MaintenanceReport:
    """Run one round. Stops early, between two removals, if `stopped` returns True.

    Each SoftPromptError is recorded in the report, not raised.
    """
    report = MaintenanceReport()

    def expire_versions() -> None:
        for deleted in _expire_versions(store, policy.keep_versions, stopped):
            report.versions_deleted += deleted

    def cut_log() -> None:
        report.log_entries_removed = store.truncate_log(policy.keep_log_entries, at_least=policy.keep_log_entries)

    def collect_blobs() -> None:
        report.blobs_removed = len(store.collect_unreferenced_blobs(policy.blob_grace_seconds, stopped))

    def forget_replicas() -> None:
        report.replicas_forgotten = store.forget_gone_replicas()

    def sweep() -> None:
        report.leftovers_removed = store.backend.sweep()

    def forget_usage() -> None:
        report.leftovers_removed += forget_refused(store.backend)

    steps = {
        "retention": expire_versions,
        "log": cut_log,
        "blobs": collect_blobs,
        "replicas": forget_replicas,
        "leftovers": sweep,
        "usage": forget_usage,
    }
    for name, step in steps.items():
        if stopped():
            break
        try:
            step()
        except SoftPromptError as error:
            report.failures[name] = error.message
    return report


def _expire_versions(store: PromptStore, keep: int, stopped: Callable[[], bool]) -> Iterator[int]:
    """The number of versions deleted of each prompt that has more than `keep`. 0 for `keep`: none."""
    for prompt in store.refresh().prompts.values() if keep else ():
        if stopped():
            return
        if expired_versions(prompt, keep):
            deleted = store.apply_retention(prompt.name, keep, ACTOR)
            audit.record("retention", "OK", {"caller": ACTOR, "prompt": prompt.name, "versions": deleted})
            log.info("versions expired", extra={"fields": {"prompt": prompt.name, "versions": deleted, "kept": keep}})
            yield len(deleted)
