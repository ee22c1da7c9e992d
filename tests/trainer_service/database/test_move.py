"""From SQLite to PostgreSQL with every row, compared; and what is refused. The rows are made from the schema, so that a
new table is part of the test.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Boolean,
    Double,
    Integer,
    LargeBinary,
    Table,
    create_engine,
    func,
    insert,
    inspect,
    make_url,
    select,
    text,
)

from shared.errors import PreconditionFailed
from tests.trainer_service.builders import record, spec
from trainer_service.__main__ import main
from trainer_service.database import move
from trainer_service.database.database import Database
from trainer_service.database.schema import metadata, service_keys, worker_slots
from trainer_service.jobs.record import to_row
from trainer_service.jobs.store.files import DatabaseFiles, DirectoryFiles, FileKind
from trainer_service.jobs.store.job_store import JobStore

NUM_ROWS = 3


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Of a stopped trainer, with rows in every table and a checkpoint."""
    with closing(Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")) as database, database.write() as connection:
        for table in metadata.sorted_tables:
            if table.name != "job_files":  # files, with SQLite
                connection.execute(insert(table), [row_of(table, number) for number in range(NUM_ROWS)])
    DirectoryFiles(tmp_path / "checkpoints").save("job0", FileKind.CHECKPOINT, 7, b"\x00\xffstate")
    return tmp_path


@pytest.fixture
def target_url(request: pytest.FixtureRequest) -> str:
    made: str = request.getfixturevalue("postgres").create_database(f"test_{uuid.uuid4().hex}")
    return made


def dump_of(data_dir: Path) -> list[str]:
    with closing(sqlite3.connect(data_dir / "jobs.sqlite3")) as connection:
        return list(connection.iterdump())


def row_of(table: Table, number: int) -> dict[str, Any]:
    """A row of any table; rows with one number refer to each other."""
    return {column.name: _value(column, number) for column in table.columns}


def _value(column: Any, number: int) -> Any:
    if column.nullable and number == 0:
        return None
    match column.type:
        case Boolean():
            return number % 2 == 0
        case Double():
            return number + 0.1
        case Integer():  # also BigInteger
            return 1000 + number
        case LargeBinary():
            return bytes([0, 255, number])
        case _:
            name = "job" if column.name == "job_id" or (column.table.name, column.name) == ("jobs", "id") else "é\\"
            return f"{name}{number}"


def moved(data_dir: Path, target_url: str, monkeypatch: pytest.MonkeyPatch) -> int:
    arguments = ["softprompt-trainer", "move-database", "--data-dir", str(data_dir), "--to", target_url]
    monkeypatch.setattr("sys.argv", arguments)
    return main()


@pytest.fixture
def target(target_url: str) -> Iterator[Database]:
    with closing(Database(target_url)) as opened:
        yield opened


def test_every_table_arrives_and_numbers_go_on(
    data_dir: Path, target_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dump_of(data_dir)
    assert moved(data_dir, target_url, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert dump_of(data_dir) == before
    assert moved(data_dir, target_url, monkeypatch) == 0  # as after a kill whose commit had arrived
    assert capsys.readouterr().out == printed
    with closing(sqlite3.connect(data_dir / "jobs.sqlite3")) as source, closing(Database(target_url)) as target:
        in_source = {name for (name,) in source.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        with target.write() as connection:
            in_target = set(inspect(connection).get_table_names())
            assert {name for name in in_source if not name.startswith("sqlite_")} == in_target
            for name in in_target - {"alembic_version", "job_files"}:
                assert name in printed
                table = metadata.tables[name]
                rows = [dict(row) for row in connection.execute(select(table)).mappings()]
                expected = [row_of(table, number) for number in range(NUM_ROWS)]
                assert sorted(rows, key=repr) == sorted(expected, key=repr), name
            deliveries = metadata.tables["webhook_deliveries"]
            row = row_of(deliveries, 9)
            del row["sequence"]
            assert connection.scalar(insert(deliveries).values(row).returning(deliveries.c.sequence)) == 1003
        assert DatabaseFiles(target).load("job0", FileKind.CHECKPOINT) == b"\x00\xffstate"
        with target.read() as connection:
            assert connection.scalar(select(metadata.tables["job_files"].c.attempt)) == 7


def test_jobs_are_read_from_the_new_database(tmp_path: Path, target_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = record(spec("old"))
    with closing(Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")) as database, database.write() as connection:
        connection.execute(insert(metadata.tables["jobs"]), to_row(job))
    assert moved(tmp_path, target_url, monkeypatch) == 0
    store = JobStore.open(target_url)
    assert store.get(job.job.id) == job.job
    store.close()


def test_a_live_trainer_is_refused(
    data_dir: Path, target_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Database(f"sqlite:///{data_dir / 'jobs.sqlite3'}")):
        assert moved(data_dir, target_url, monkeypatch) == 1
    assert "another trainer uses jobs.sqlite3" in capsys.readouterr().err


def test_a_live_trainer_on_postgresql_is_refused(target: Database, tmp_path: Path) -> None:
    with target.write() as connection:
        connection.execute(
            insert(worker_slots).values(owner="replica-a", slots=1, lacking=0, lease_until=target.now() + 60)
        )
    empty = Database(f"sqlite:///{tmp_path / 'empty.sqlite3'}")
    with closing(empty), pytest.raises(PreconditionFailed, match="replica-a uses the database"):
        move.move_database(target, empty)


def test_a_database_in_use_is_no_target(
    data_dir: Path,
    target: Database,
    target_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with target.write() as connection:
        connection.execute(insert(service_keys).values(name="page", value=b"x"))
    assert moved(data_dir, target_url, monkeypatch) == 1
    assert "service_keys has 1 rows" in capsys.readouterr().err


@pytest.mark.parametrize("schema", ["0001", "9999"])
def test_another_schema_is_refused(
    data_dir: Path, target_url: str, schema: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(data_dir / "jobs.sqlite3")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (schema,))
    assert moved(data_dir, target_url, monkeypatch) == 1
    assert f"has schema {schema}" in capsys.readouterr().err


def test_a_row_that_changes_on_its_way_leaves_the_target_empty(
    data_dir: Path, target_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trigger in the new database stands for whatever may change rows."""
    Database(target_url).close()
    engine = create_engine(make_url(target_url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(text("CREATE RULE lossy AS ON INSERT TO store_cursors DO INSTEAD NOTHING"))
    assert moved(data_dir, target_url, monkeypatch) == 1
    assert "3 rows of store_cursors were copied" in capsys.readouterr().err
    with engine.begin() as connection:
        counts = [connection.scalar(select(func.count()).select_from(table)) for table in metadata.sorted_tables]
    engine.dispose()
    assert set(counts) == {0}


def test_a_text_that_is_too_long_names_its_table(
    data_dir: Path, target_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SQLite enforces no length."""
    with closing(sqlite3.connect(data_dir / "jobs.sqlite3")) as connection, connection:
        connection.execute("UPDATE tenant_shares SET tenant = ? WHERE tenant = ?", ("t" * 300, "é\\1"))
    assert moved(data_dir, target_url, monkeypatch) == 1
    assert "refuses a row of tenant_shares" in capsys.readouterr().err


def test_wrong_usage_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert moved(tmp_path, "sqlite:///x", monkeypatch) == 2
    assert "--to" in capsys.readouterr().err
    assert moved(tmp_path, "postgresql://nobody@/x?host=/nowhere", monkeypatch) == 1
    assert "jobs.sqlite3" in capsys.readouterr().err
    assert not os.listdir(tmp_path)
