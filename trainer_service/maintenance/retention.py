"""Retention: thins the events of ended jobs, and removes ended jobs and unused datasets after some days.

A round consists of short transactions with pauses between them. It may stop anywhere; the next round continues. Several
trainers on one database may run rounds at once. Everything that a round removes is audited.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from pydantic import Field

from shared.caller import Tenant
from shared.errors import SoftPromptError
from shared.security import audit
from shared.settings_part import SettingsPart
from trainer_service.database.database import Database
from trainer_service.datasets.ledger import DatasetLedger
from trainer_service.datasets.store import DatasetStore
from trainer_service.jobs.store.event_compaction import compact, jobs_to_compact
from trainer_service.jobs.store.files import JobFiles
from trainer_service.jobs.store.job_expiry import expired_jobs, remove_job, tenants_with_ended_jobs

DAY_SECONDS = 86_400.0
ACTOR = "retention"
"""The caller of removals in the audit log."""

_ORPHAN_SECONDS = DAY_SECONDS
"""Age at which a dataset file without a tenant is removed: left by a crash, or unused since an older build."""

_BATCH = 100
Pause = Callable[[], bool]
"""Called between transactions to let others run; if it returns True, the round ends."""


class RetentionPolicy(SettingsPart):
    """Retention times; the settings of a tenant take precedence. `trainer_service.config` inherits them."""

    ended_job_days: float = Field(default=90, ge=0)
    """An ended job is removed after this many days with its events and its kept checkpoint; versions stay. 0: kept
    until it is deleted.
    """
    unused_dataset_days: float = Field(default=30, ge=0)
    """A dataset is removed after this many days without use, unless an unended job needs it. 0: kept until its tenant
    deletes it. The callers file can set another number for a tenant, also for ended_job_days.
    """

    def jobs_before(self, tenant: Tenant | None, now: float) -> float:
        """The time (seconds since the epoch) before which removable jobs ended."""
        own = None if tenant is None else tenant.ended_job_days
        return _before(self.ended_job_days if own is None else own, now)

    def datasets_before(self, tenant: Tenant | None, now: float) -> float:
        """The time (seconds since the epoch) before which removable datasets were last used."""
        own = None if tenant is None else tenant.unused_dataset_days
        return _before(self.unused_dataset_days if own is None else own, now)


@dataclass
class RetentionReport:
    """What one round did."""

    events_removed: int = 0
    jobs_removed: int = 0
    datasets_removed: int = 0
    """Datasets removed from a tenant."""
    files_removed: int = 0
    """Dataset files removed because no tenant has the dataset any more."""
    failures: dict[str, str] = field(default_factory=dict)
    """Reasons of failures by step."""

    @property
    def did_something(self) -> bool:
        """Whether the round removed anything."""
        return bool(self.events_removed or self.jobs_removed or self.datasets_removed or self.files_removed)


class Retention:
    """Runs single rounds. `round` blocks, so call it in a thread."""

    def __init__(
        self,
        database: Database,
        files: JobFiles,
        ledger: DatasetLedger,
        datasets: DatasetStore,
        policy: RetentionPolicy,
    ) -> None:
        self._database, self._files, self._ledger = database, files, ledger
        self._datasets, self._policy = datasets, policy

    def round(self, tenants: Mapping[str, Tenant], pause: Pause) -> RetentionReport:
        """Runs one round. Failed steps are in the report and are repeated in the next round; they raise nothing."""
        report = RetentionReport()
        steps: tuple[Callable[[Mapping[str, Tenant], Pause, RetentionReport], None], ...] = (
            self._compact_events,
            self._remove_jobs,
            self._measure_datasets,
            self._remove_datasets,
            self._remove_orphans,
            self._give_pages_back,
        )
        for step in steps:
            try:
                step(tenants, pause, report)
            except (SoftPromptError, OSError) as error:
                report.failures[step.__name__.removeprefix("_")] = str(error)
        return report

    def _compact_events(self, tenants: Mapping[str, Tenant], pause: Pause, report: RetentionReport) -> None:
        while found := jobs_to_compact(self._database, _BATCH):
            for job_id in found:
                report.events_removed += compact(self._database, job_id, pause)
                if pause():
                    return

    def _remove_jobs(self, tenants: Mapping[str, Tenant], pause: Pause, report: RetentionReport) -> None:
        now = time.time()
        for tenant in tenants_with_ended_jobs(self._database):
            before = self._policy.jobs_before(tenants.get(tenant), now)
            while found := expired_jobs(self._database, tenant, before, _BATCH):
                for job in found:
                    # Files first: a row without files is removed in the next round, files without a row only at a
                    # restart.
                    self._files.remove(job.id)
                    if remove_job(self._database, job.id, pause):
                        report.jobs_removed += 1
                        audit.record(
                            "tidying", "OK", {"caller": ACTOR, "tenant": tenant, "prompt": job.prompt, "job": job.id}
                        )
                    if pause():
                        return

    def _measure_datasets(self, tenants: Mapping[str, Tenant], pause: Pause, report: RetentionReport) -> None:
        """Measures datasets of older builds, which count against quotas from then on."""
        after = ""
        while names := self._ledger.unmeasured(after, _BATCH):
            for after in names:
                if (measured := self._datasets.measure(after)) is not None:
                    self._ledger.set_measures(measured)
                if pause():
                    return

    def _remove_datasets(self, tenants: Mapping[str, Tenant], pause: Pause, report: RetentionReport) -> None:
        now, after = time.time(), ("", "")
        while rows := self._ledger.last_used_before(now, after, _BATCH):
            for tenant, name, last_use in rows:
                after, before = (tenant, name), self._policy.datasets_before(tenants.get(tenant), now)
                if last_use < before and self._ledger.remove_unused(tenant, name, before):
                    report.datasets_removed += 1
                    audit.record("tidying", "OK", {"caller": ACTOR, "tenant": tenant, "dataset": name})
                    self._remove_bytes(name, report)
                    if pause():
                        return

    def _remove_orphans(self, tenants: Mapping[str, Tenant], pause: Pause, report: RetentionReport) -> None:
        for names in _batches(self._datasets.unused(_ORPHAN_SECONDS), _BATCH):
            for name in sorted(set(names) - self._ledger.owned(names)):
                self._remove_bytes(name, report)
            if pause():
                return

    def _remove_bytes(self, name: str, report: RetentionReport) -> None:
        if self._ledger.remove_bytes(name, self._datasets.remove):
            report.files_removed += 1
            audit.record("tidying", "OK", {"caller": ACTOR, "file_of": name})

    def _give_pages_back(self, tenants: Mapping[str, Tenant], pause: Pause, report: RetentionReport) -> None:
        self._database.give_pages_back(pause)


def _before(days: float, now: float) -> float:
    return now - days * DAY_SECONDS if days else float("-inf")


def _batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = iter(names)
    while batch := list(islice(remaining, size)):
        yield batch
