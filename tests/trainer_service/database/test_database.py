"""Connections of the job database end with it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from shared.errors import Unavailable
from trainer_service.database.database import Database


def test_a_call_that_outlives_close_ends_its_own_connection(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    with database.read() as connection:
        raw = connection.connection.dbapi_connection
        database.close()
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    assert isinstance(raw, sqlite3.Connection)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        raw.execute("SELECT 1")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")

    def fill() -> None:
        with database.write() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=10")  # SQLite raises the error that a full disk causes
            connection.exec_driver_sql("CREATE TABLE big AS SELECT zeroblob(1000000)")

    with pytest.raises(Unavailable, match="the job database is unavailable: its disk is full"):
        fill()
    database.close()
