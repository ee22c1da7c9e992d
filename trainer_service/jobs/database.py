"""A connection to the job database: SQLite with nothing to set up, or PostgreSQL by URL; migrated to this build's schema when opened.

Everything that differs between the two dialects is here. Callers see `read()` and `write()` transactions, and Unavailable when the
database is away.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, OperationalError

from shared.errors import InvalidInput, PreconditionFailed, Unavailable
from trainer_service.jobs import sqlite_pages

log = logging.getLogger(__name__)

_BUSY_TIMEOUT_SECONDS = 10
_MAX_IDLE_WAL_BYTES = 64 << 20
_MIGRATION_LOCK = 0x50524F4D5054  # any number that no other program locks in this database
_NAMED_LOCKS = 0x50524F4D  # keeps hashes of names apart from other programs' numbers; two names with one hash only wait for each other
_POSTGRES_CONNECTION = {
    "connect_timeout": 5,
    # A server that vanished from the network is noticed within seconds, and not after the hours that TCP allows.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    # A replica that is stopped in the middle of a transaction must not hold its rows from the others for ever.
    "options": "-c idle_in_transaction_session_timeout=20000",
}


class Database:
    """Thread-safe. On SQLite this process owns the file: a second one is refused, since recovery assumes that its predecessor is gone."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise InvalidInput.of("database_url", "must be a URL such as sqlite:///jobs.sqlite3 or postgresql://host/name") from error
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if not self.is_sqlite and parsed.get_backend_name() != "postgresql":
            raise InvalidInput.of("database_url", f"{parsed.get_backend_name()} is not supported: sqlite or postgresql")
        self._lock_file: int | None = None
        self._closed = False
        self._writer: Any = threading.Lock() if self.is_sqlite else nullcontext()
        if self.is_sqlite:
            if not parsed.database or parsed.database == ":memory:":
                raise InvalidInput.of("database_url", "SQLite needs a file: jobs must survive a restart")
            self._lock_file = _own(Path(parsed.database))
            self.engine = create_engine(parsed, connect_args={"isolation_level": None, "timeout": _BUSY_TIMEOUT_SECONDS}, pool_size=5)
            _configure_sqlite(self.engine)
        else:
            self.engine = create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_size=5,
                pool_pre_ping=True,
                connect_args=_POSTGRES_CONNECTION,
            )
        try:
            self._migrate()
            if self.is_sqlite:
                sqlite_pages.enable(self.engine, Path(parsed.database or ""))
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with _translated(), self._connected() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may read before it writes: on SQLite it takes the write lock first, so it never fails half-way as busy."""
        with self._writer, _translated(), self._connected() as connection:
            connection = connection.execution_options(immediate=True)
            with connection.begin():
                yield connection

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A call that outlives `close` ends its connection itself: there is no pool any more that would."""
        with self.engine.connect() as connection:
            try:
                yield connection
            finally:
                if self._closed and not connection.invalidated:
                    connection.detach()

    def now(self) -> float:
        """Seconds since the epoch by a clock that all replicas share: PostgreSQL's own. On SQLite there is one replica, and its clock."""
        if self.is_sqlite:
            return time.time()
        with self.read() as connection:
            return float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")))

    def lock(self, connection: Connection, name: str) -> None:
        """Until the end of the transaction no other one has the lock of this name. On SQLite a transaction that writes is alone anyhow."""
        if not self.is_sqlite:
            statement = text("SELECT pg_advisory_xact_lock(:space, hashtext(:name))")
            connection.execute(statement, {"space": _NAMED_LOCKS, "name": name})

    def size_bytes(self) -> int:
        """Of the SQLite file and its log, or of the PostgreSQL database with all its tables."""
        if self.is_sqlite:
            path = str(self.engine.url.database)
            return sum(os.stat(name).st_size for name in (path, f"{path}-wal") if os.path.exists(name))
        with self.read() as connection:
            return int(connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)

    def give_pages_back(self, pause: Callable[[], bool]) -> None:
        """Pages that nothing uses go back to the file system, some at a time; `pause` True ends this. PostgreSQL does it by itself."""
        while self.is_sqlite:
            with self.write() as connection:
                more = sqlite_pages.give_some_back(connection)
            if not more or pause():
                return

    def close(self) -> None:
        self._closed = True
        self.engine.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", "trainer_service.jobs:migrations")
        config.set_main_option("path_separator", "os")
        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            current = MigrationContext.configure(connection).get_current_revision()
            known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
            if current is not None and current not in known:
                raise PreconditionFailed(f"the job database has schema {current}, which this build does not know: run a newer build")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _own(path: Path) -> int:
    """An open descriptor that holds the lock beside the database file. Raises PreconditionFailed if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise PreconditionFailed(f"another trainer uses {path.name}: SQLite serves one trainer; use PostgreSQL for several") from error
    return descriptor


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file; before anything that writes to it
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA journal_size_limit={_MAX_IDLE_WAL_BYTES}")
        cursor.execute("PRAGMA synchronous=FULL")  # an accepted job survives a power cut
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_SECONDS * 1000}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    """The database's own errors as Unavailable; what a program did wrong stays what it is."""
    try:
        yield
    except IntegrityError:
        raise
    except (OperationalError, InterfaceError) as error:
        log.warning("the job database is away: %s", error.orig)
        raise Unavailable("the job database is away; try again") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise Unavailable("the job database went away; try again") from error
