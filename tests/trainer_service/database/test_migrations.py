"""A database of an older build, with jobs in it, opened by this one."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, TextClause, create_engine, insert, make_url, text

from shared.errors import NotFound, PreconditionFailed
from tests.trainer_service.builders import record, spec
from trainer_service.database.schema import job_datasets, jobs
from trainer_service.datasets.ledger import DatasetLedger
from trainer_service.datasets.roots import DatasetRoots
from trainer_service.datasets.store import DatasetStore
from trainer_service.datasets.upload import UploadLimits
from trainer_service.jobs import transitions
from trainer_service.jobs.record import Record, to_row
from trainer_service.jobs.store.files import files_for
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.maintenance.retention import DAY_SECONDS, Retention, RetentionPolicy
from trainer_service.training.spec import Example


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    made: str = request.getfixturevalue("postgres").create_database(f"test_{uuid.uuid4().hex}")
    return made.replace("postgresql://", "postgresql+psycopg://")


def upgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", "trainer_service.database:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def test_jobs_of_the_first_schema_are_read_and_their_datasets_are_known(url: str) -> None:
    old = record(spec("old", validation_dataset="datasets/held-out"))
    engine = create_engine(make_url(url))
    with engine.begin() as connection:
        upgrade(connection, "0001")
        columns = {row.name for row in connection.execute(_columns(url))}
        row = {name: value for name, value in to_row(Record(old.job, old.queue_key)).items() if name in columns}
        connection.execute(insert(jobs).values(**row))
    engine.dispose()

    store = JobStore.open(url)
    assert store.get(old.job.id) == old.job
    ledger = DatasetLedger(store.database)
    ledger.require(old.job.tenant, ("datasets/old", "datasets/held-out"))
    with pytest.raises(NotFound):
        ledger.require(old.job.tenant, ("datasets/other",))
    store.close()


def test_datasets_of_the_second_schema_belong_to_the_tenants_of_the_jobs_that_name_them(
    url: str, tmp_path: Path
) -> None:
    files = DatasetStore(tmp_path / "datasets", UploadLimits(), DatasetRoots([]))
    both, one = (
        files.add([Example(line=n, input=f"{text} {n}", output="x") for n in (1, 2)], "spec.dataset").name
        for text in "ab"
    )
    long_ago = time.time() - 365 * DAY_SECONDS
    old = [
        record(replace(spec(), dataset=name), caller=caller, queued_at=long_ago)
        for name, caller in ((both, "a"), (both, "b"), (one, "b"))
    ]
    engine = create_engine(make_url(url))
    with engine.begin() as connection:
        upgrade(connection, "0002")
        columns = {row.name for row in connection.execute(_columns(url))}
        for each in old:
            row = {name: value for name, value in to_row(each).items() if name in columns}
            connection.execute(insert(jobs).values(**row))
            connection.execute(insert(job_datasets).values(dataset=each.job.spec.dataset, job_id=each.job.id))
    engine.dispose()

    store = JobStore.open(url)
    ledger = DatasetLedger(store.database)
    owned = {tenant: [found.name for found in ledger.page(tenant, "", 10)] for tenant in ("a", "b", "c")}
    assert owned == {"a": [both], "b": sorted([both, one]), "c": []}
    store.change(old[2].job.id, lambda before: transitions.cancel(before, long_ago))
    retention = Retention(
        store.database, files_for(store.database, tmp_path / "checkpoints"), ledger, files, RetentionPolicy()
    )
    report = retention.round({}, lambda: False)
    assert (report.failures, report.jobs_removed, report.datasets_removed) == ({}, 1, 0), (
        "an upgrade removes no dataset at once"
    )
    assert [found.num_examples for found in ledger.page("b", "", 10)] == [2, 2]
    assert (
        ledger.get("a", both).size_bytes
        == (tmp_path / "datasets" / f"{both.removeprefix('datasets/')}.jsonl").stat().st_size
    )
    store.close()


def test_a_database_of_a_newer_build_is_refused(url: str) -> None:
    JobStore.open(url).close()
    engine = create_engine(make_url(url))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(PreconditionFailed, match="newer build"):
        JobStore.open(url)


def _columns(url: str) -> TextClause:
    if url.startswith("sqlite"):
        return text("SELECT name FROM pragma_table_info('jobs')")
    return text("SELECT column_name AS name FROM information_schema.columns WHERE table_name = 'jobs'")
