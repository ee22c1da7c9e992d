"""A job database and its files, for tests of retention and of the ownership of datasets."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from shared.caller import Tenant
from shared.errors import NotFound
from tests.trainer_service.builders import record, spec
from trainer_service.database.database import Database
from trainer_service.database.schema import datasets as dataset_rows
from trainer_service.datasets.ledger import DatasetLedger
from trainer_service.datasets.roots import DatasetRoots
from trainer_service.datasets.store import DatasetStore
from trainer_service.datasets.tenant_datasets import TenantDatasets
from trainer_service.datasets.upload import UploadLimits
from trainer_service.jobs import transitions
from trainer_service.jobs.model import Job
from trainer_service.jobs.store.files import JobFiles, files_for
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.maintenance.retention import DAY_SECONDS, Retention, RetentionPolicy
from trainer_service.training.spec import Example

ACME, RIVAL = Tenant("acme"), Tenant("rival")
POLICY = RetentionPolicy(ended_job_days=90, unused_dataset_days=30)


class Place:
    """A job database, its files, and the objects that work on them."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url, self.directory = url, directory
        self.jobs = JobStore.open(url)
        self.ledger = DatasetLedger(self.jobs.database)
        self.files: JobFiles = files_for(self.database, directory / "checkpoints")
        self.bytes = DatasetStore(directory / "datasets", UploadLimits(), DatasetRoots([]))
        self.datasets = TenantDatasets(self.bytes, self.ledger)

    @property
    def database(self) -> Database:
        return self.jobs.database

    def round(self, policy: RetentionPolicy = POLICY, *tenants: Tenant):  # type: ignore[no-untyped-def]
        retention = Retention(self.database, self.files, self.ledger, self.bytes, policy)
        return retention.round({tenant.name: tenant for tenant in tenants}, lambda: False)

    def add_dataset(self, tenant: Tenant, text: str, unused_days: float = 0) -> str:
        examples = [Example(line=n, input=f"{text} {n}", output="x") for n in (1, 2)]
        name = self.datasets.add(tenant, examples, "spec.dataset").name
        self.age_dataset(tenant, name, unused_days)
        return name

    def add_bytes(self, examples: Iterable[Example]) -> str:
        """Of a dataset that no tenant has; returns its name."""
        return self.bytes.add(examples, "spec.dataset").name

    def age_dataset(self, tenant: Tenant, name: str, days: float) -> None:
        mine = (dataset_rows.c.tenant == tenant.name) & (dataset_rows.c.dataset == name)
        with self.database.write() as connection:
            connection.execute(update(dataset_rows).where(mine).values(last_use_time=time.time() - days * DAY_SECONDS))

    def add_job(self, tenant: Tenant, dataset: str, ended_days: float | None = None) -> Job:
        made = record(replace(spec(), dataset=dataset), tenant=tenant.name)
        job = self.jobs.create(made, max_queued=1000, max_active_of_caller=1000, use_datasets=self.ledger.use)
        if ended_days is not None:
            then = time.time() - ended_days * DAY_SECONDS
            job = self.jobs.change(job.id, lambda before: transitions.cancel(before, then)).job
        return job

    def has_bytes(self, name: str) -> bool:
        return (self.directory / "datasets" / f"{name.removeprefix('datasets/')}.jsonl").exists()

    def exists(self, job: Job) -> bool:
        try:
            self.jobs.get(job.id)
        except NotFound:
            return False
        return True


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").create_database(f"test_{uuid.uuid4().hex}")
    made = Place(url, tmp_path)
    yield made
    made.jobs.close()
