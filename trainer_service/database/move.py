"""Copies the whole job database into an empty one, table by table as `schema` lists them, in one transaction.

The number and the digest of each table's rows are compared. An error leaves the target as it was. A repeated move, for
example after a kill whose commit had arrived, finds the same rows and only compares.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from sqlalchemy import Connection, LargeBinary, Table, func, insert, inspect, select, text
from sqlalchemy.exc import DataError, IntegrityError

from shared.errors import PreconditionFailed
from trainer_service.database.database import Database
from trainer_service.database.schema import metadata

_BATCH_ROWS, _REPORTED_ROWS = 200, 10_000
_VERSIONS_TABLE = "alembic_version"

Row = Mapping[str, Any]
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class MovedTable:
    """A table and its rows in the source and, compared, in the target."""

    name: str
    rows: int
    digest: str


def move_database(
    source: Database,
    target: Database,
    more: Mapping[str, Callable[[], Iterable[Row]]] | None = None,
    progress: Progress = lambda table, rows: None,
) -> tuple[MovedTable, ...]:
    """Copies every row, unless the target has them all. `more`: rows of a table, by its name, that the source keeps
    elsewhere. `progress` gets a table and the number of its rows so far. Raises PreconditionFailed if the target has
    other rows, if a trainer uses the source, or if the target refuses a row or changes one; nothing is copied then.
    """
    moved = []
    with source.read() as reader, target.write() as writer:
        _check_tables(reader)
        _check_unused(source, reader)
        if not target.is_sqlite:  # it waits while a large table of the source is read
            writer.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        there = _rows_there(writer)
        for table in metadata.sorted_tables:
            expected, found = _Summary(table), _Summary(table)
            rows = expected.of(chain(_rows(reader, table), (more or {}).get(table.name, list)()), progress)
            if there:
                deque(rows, maxlen=0)
            else:
                _copy(table, rows, writer)
            deque(found.of(_rows(writer, table)), maxlen=0)
            if found.table != expected.table:
                other = f"{expected.rows} rows of {table.name} were copied, and it has {found.rows} with other content"
                empty = f"it is not empty: {there}; move into a database that no trainer has used"
                raise PreconditionFailed(f"the new database can't be used: {empty if there else other}")
            if not there:
                _set_counter(target, writer, table)
            moved.append(found.table)
    return tuple(moved)


def _check_tables(connection: Connection) -> None:
    unknown = set(inspect(connection).get_table_names()) - {*metadata.tables, _VERSIONS_TABLE}
    if unknown:
        raise PreconditionFailed(f"the database has tables that this build does not know: {', '.join(sorted(unknown))}")


def _check_unused(source: Database, connection: Connection) -> None:
    """An SQLite file is locked by its trainer. On PostgreSQL, trainers have leases."""
    if source.is_sqlite:
        return
    slots = metadata.tables["worker_slots"]
    now = text("extract(epoch FROM clock_timestamp())")
    owner = connection.scalar(select(slots.c.owner).where(slots.c.lease_until > now).limit(1))
    if owner is not None:
        raise PreconditionFailed(f"the trainer {owner} uses the database: stop all trainers, and try again")


def _rows_there(connection: Connection) -> str:
    """The first table with rows, and their number; empty for an empty database."""
    counts = ((table.name, select(func.count()).select_from(table)) for table in metadata.sorted_tables)
    found = ((name, connection.scalar(count)) for name, count in counts)
    return next((f"{name} has {count} rows" for name, count in found if count), "")


def _rows(connection: Connection, table: Table) -> Iterator[Row]:
    with connection.execute(select(table), execution_options={"yield_per": _batch_rows(table)}) as found:
        for row in found.mappings():
            yield dict(row)


def _copy(table: Table, rows: Iterator[Row], writer: Connection) -> None:
    while batch := [dict(row) for row in islice(rows, _batch_rows(table))]:
        try:
            writer.execute(insert(table), batch)
        except (DataError, IntegrityError) as error:
            raise PreconditionFailed(f"the new database refuses a row of {table.name}: {error.orig}") from error


def _batch_rows(table: Table) -> int:
    """Rows to hold in memory: files of jobs have up to hundreds of megabytes each."""
    return 1 if any(isinstance(column.type, LargeBinary) for column in table.columns) else _BATCH_ROWS


class _Summary:
    """Number and digest of rows in any order: databases sort texts differently."""

    def __init__(self, table: Table) -> None:
        self._table, self.rows, self._sum = table, 0, 0

    def of(self, rows: Iterable[Row], progress: Progress = lambda table, rows: None) -> Iterator[Row]:
        """The same rows, each counted when it is asked for."""
        for row in rows:
            values = [_plain(row[column.name]) for column in self._table.columns]
            self._sum += int.from_bytes(hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).digest(), "big")
            self.rows += 1
            yield row
            if self.rows % _REPORTED_ROWS == 0:
                progress(self._table.name, self.rows)

    @property
    def table(self) -> MovedTable:
        return MovedTable(self._table.name, self.rows, f"{self._sum % 2**256:064x}")


def _plain(value: Any) -> Any:
    """Files as their digests, because their `repr` takes several times their memory."""
    return hashlib.sha256(value).digest() if isinstance(value, bytes | memoryview | bytearray) else value


def _set_counter(target: Database, connection: Connection, table: Table) -> None:
    """Numbers that the database assigns go on after the highest one."""
    column = table.autoincrement_column
    if column is None or target.is_sqlite:
        return
    name = f"pg_get_serial_sequence('{table.name}', '{column.name}')"
    if connection.scalar(text(f"SELECT {name}")) is not None:
        highest = connection.scalar(select(func.max(column)))
        if highest is not None:
            connection.execute(text(f"SELECT setval({name}, :highest)"), {"highest": highest})
