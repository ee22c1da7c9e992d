"""The job database: an SQLite file that needs no setup, or PostgreSQL by URL. Opening it migrates it to this build's
schema.

All differences between the two dialects are here. Callers use `read()` and `write()` transactions, which raise
Unavailable while the database is unavailable.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import lock_descriptor
from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Engine,
    Row,
    Select,
    Table,
    Update,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError

from shared.errors import InvalidInput, PreconditionFailed, Unavailable
from trainer_service.database import sqlite_pages
from trainer_service.database.statement_deadline import StatementDeadline
from trainer_service.database.upserts import insert, or_changes, upsert

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STATEMENT_SECONDS = 15.0
_MAX_IDLE_WAL_BYTES = 64 << 20
_MIGRATION_LOCK = 0x50524F4D5054  # any number that no other program locks in this database
# Separates hashes of names from other programs' lock numbers. Two names with the same hash only wait for each other.
_NAMED_LOCKS = 0x50524F4D
_CONNECT_SECONDS = 5.0
_POSTGRES_CONNECTION = {
    # A server that vanished from the network is detected within seconds instead of the hours that TCP allows.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


class Database:
    """Transactions on one database; thread-safe. An SQLite file belongs to one process: a second one is refused,
    because recovery assumes that the previous process has ended.
    """

    def __init__(self, url: str, timeout_seconds: float = STATEMENT_SECONDS, *, migrate: bool = True) -> None:
        """Opens the database and, unless `migrate` is False, migrates it. Raises InvalidInput, PreconditionFailed or
        Unavailable.

        `timeout_seconds` limits each statement, including its wait for locks; slower ones raise Unavailable. Migrations
        may take longer.
        """
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise InvalidInput.of(
                "database_url", "must be a URL such as sqlite:///jobs.sqlite3 or postgresql://host/name"
            ) from error
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if not self.is_sqlite and parsed.get_backend_name() != "postgresql":
            raise InvalidInput.of("database_url", f"{parsed.get_backend_name()} is not supported: sqlite or postgresql")
        self._lock_file: int | None = None
        self._closed = False
        self._timeout_seconds = timeout_seconds
        self._writer = threading.Lock() if self.is_sqlite else None
        if self.is_sqlite:
            if not parsed.database or parsed.database == ":memory:":
                raise InvalidInput.of("database_url", "SQLite needs a file: jobs must survive a restart")
            self._lock_file = _own(Path(parsed.database))
            arguments = {"isolation_level": None, "timeout": timeout_seconds}
            self.engine = create_engine(parsed, connect_args=arguments, pool_size=5, pool_timeout=timeout_seconds)
            _configure_sqlite(self.engine, timeout_seconds)
        else:
            self.engine = create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_size=5,
                pool_timeout=timeout_seconds,
                pool_pre_ping=True,
                connect_args=_postgres_connection(timeout_seconds),
            )
            self._deadline = StatementDeadline(self.engine, timeout_seconds)
        if not migrate:
            return
        try:
            self._migrate()
            if self.is_sqlite:
                sqlite_pages.enable(self.engine, Path(parsed.database or ""))
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with translated(), self._connected() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may read before it writes. On SQLite it takes the write lock first, so it can't become
        busy later.
        """
        with self._writing(), translated(), self._connected() as connection:
            connection = connection.execution_options(immediate=True)
            with connection.begin():
                yield connection

    def rows(self, query: Select[*Ts]) -> Sequence[Row[*Ts]]:
        """Runs a query in a new transaction and returns its rows."""
        with self.read() as connection:
            return connection.execute(query).all()

    def scalars(self, query: Select[T]) -> Sequence[T]:
        """Runs a query for one column in a new transaction and returns its values."""
        with self.read() as connection:
            return connection.scalars(query).all()

    def scalar(self, query: Select[T]) -> T | None:
        """Runs a query in a new transaction and returns its first value; None without a row."""
        with self.read() as connection:
            return connection.scalar(query)

    def execute(self, statement: Update | Delete) -> int:
        """Executes a statement in a new transaction. Returns the number of changed rows."""
        with self.write() as connection:
            return connection.execute(statement).rowcount

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Serializes writing transactions on SQLite. If one hangs, for example because of the disk, waiting ones raise
        Unavailable after the time limit.
        """
        if self._writer is None:
            yield
            return
        if not self._writer.acquire(timeout=self._timeout_seconds):
            raise Unavailable("the job database is busy: another transaction holds it; try again")
        try:
            yield
        finally:
            self._writer.release()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection of the pool. A call that outlives `close` closes its connection itself, because the pool is
        disposed of.
        """
        with self.engine.connect() as connection:
            try:
                yield connection
            finally:
                if self._closed and not connection.invalidated:
                    connection.detach()

    def now(self) -> float:
        """Seconds since the epoch by a clock that all replicas share: that of PostgreSQL. On SQLite, which has one
        replica, the local clock.
        """
        if self.is_sqlite:
            return time.time()
        with self.read() as connection:
            return float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")))

    def lock(self, connection: Connection, name: str) -> None:
        """Takes the lock of this name until the end of the transaction. On SQLite it does nothing, because only one
        transaction writes at a time.
        """
        if not self.is_sqlite:
            statement = text("SELECT pg_advisory_xact_lock(:space, hashtext(:name))")
            connection.execute(statement, {"space": _NAMED_LOCKS, "name": name})

    def insert(self, table: Table) -> Any:
        """An INSERT into the table that has `on_conflict_do_nothing` and `on_conflict_do_update`."""
        return insert(self.is_sqlite, table)

    def put(
        self,
        connection: Connection,
        table: Table,
        key: Mapping[str, Any],
        values: Mapping[str, Any],
        where: ColumnElement[bool] | None = None,
        *,
        newest: str = "",
    ) -> None:
        """Inserts a row, or changes the values of the one with this primary key, if it meets the condition `where`, or
        its value of the column `newest` is not larger than the new one. At most one of the two may be given.
        """
        assert where is None or not newest
        if where is None:
            statement = upsert(self.is_sqlite, table, tuple(key), tuple(values), newest)
        else:
            statement = or_changes(self.insert(table), key, values, where)
        connection.execute(statement, {**key, **values})

    def size_bytes(self) -> int:
        """Size of the SQLite file and its log, or of the PostgreSQL database with all its tables."""
        if self.is_sqlite:
            path = str(self.engine.url.database)
            return sum(os.stat(name).st_size for name in (path, f"{path}-wal") if os.path.exists(name))
        with self.read() as connection:
            return int(connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)

    def give_pages_back(self, pause: Callable[[], bool]) -> None:
        """Returns unused pages of an SQLite file to the file system in short transactions; stops if `pause()` between
        them returns True. PostgreSQL needs no call.
        """
        while self.is_sqlite:
            with self.write() as connection:
                more = sqlite_pages.give_some_back(connection)
            if not more or pause():
                return

    def close(self) -> None:
        """Closes idle connections and releases the lock of the SQLite file."""
        self._closed = True
        self.engine.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def _migrate(self) -> None:
        config = _migrations()
        with self.write() as connection:
            if not self.is_sqlite:
                self._deadline.lift()
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10min'"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            current = MigrationContext.configure(connection).get_current_revision()
            known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
            if current is not None and current not in known:
                raise PreconditionFailed(f"the job database has the unknown schema {current}: run a newer build")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        if not self.is_sqlite:
            self._deadline.restore()


def newest_schema() -> str:
    """The revision that a database of this build has."""
    return str(ScriptDirectory.from_config(_migrations()).get_current_head())


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", f"{__package__}:migrations")
    config.set_main_option("path_separator", "os")
    return config


def _own(path: Path) -> int:
    """Locks a file beside the database file and returns its descriptor. Raises PreconditionFailed if another process
    has the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not lock_descriptor(descriptor, blocking=False):
        os.close(descriptor)
        raise PreconditionFailed(
            f"another trainer uses {path.name}: SQLite serves one trainer; use PostgreSQL for several"
        )
    _hide(path)
    return descriptor


def _hide(path: Path) -> None:
    """Lets only owner and group read the database, whatever the umask: it holds callers' inputs and the key of page
    tokens. SQLite gives the files beside it the same permissions.
    """
    database = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        os.fchmod(database, os.fstat(database).st_mode & 0o770)
    finally:
        os.close(database)


def _postgres_connection(timeout_seconds: float) -> dict[str, Any]:
    milliseconds = int(1000 * timeout_seconds)
    connect_timeout = max(2, math.ceil(min(timeout_seconds, _CONNECT_SECONDS)))  # whole seconds; libpq's minimum is 2
    # A replica that is paused in the middle of a transaction must not lock its rows forever.
    idle = max(20_000, milliseconds)
    options = f"-c idle_in_transaction_session_timeout={idle} -c statement_timeout={milliseconds}"
    return {**_POSTGRES_CONNECTION, "connect_timeout": connect_timeout, "options": options}


def _configure_sqlite(engine: Engine, timeout_seconds: float) -> None:
    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")  # affects new files only; must precede all writes
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA journal_size_limit={_MAX_IDLE_WAL_BYTES}")
        cursor.execute("PRAGMA synchronous=FULL")  # an accepted job survives a power cut
        cursor.execute(f"PRAGMA busy_timeout={int(timeout_seconds * 1000)}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextmanager
def translated() -> Iterator[None]:
    """Translates errors of the connection and the server into Unavailable; other errors stay as they are."""
    try:
        yield
    except IntegrityError:
        raise
    except (OperationalError, InterfaceError) as error:
        log.warning("the job database is unavailable: %s", error.orig)
        reason = ": its disk is full" if _is_full(error.orig) else "; try again"
        raise Unavailable(f"the job database is unavailable{reason}") from error
    except DataError as error:
        if "NUL" not in str(error.orig):
            raise
        raise InvalidInput.of("request", "contains a text with a NUL character, which PostgreSQL can't hold") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise Unavailable("the connection to the job database was lost; try again") from error


def _is_full(error: Any) -> bool:
    return getattr(error, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(error, "sqlstate", "") == "53100"
