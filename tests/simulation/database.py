"""The job database of simulated trainers."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from tests.simulation.machine import CALL
from trainer_service.database.database import Database, translated


class SimulatedDatabase(Database):
    """SQLite in memory, whose disk is full at times. All simulated processes use one connection: no transaction waits
    for anything, so they run one after another.
    """

    is_full = False

    def __init__(self, url: str) -> None:
        """Migrates the database at `url`, whose copies in memory are the databases of lives (`restore`)."""
        Database(url).close()
        super().__init__(url, migrate=False)
        self._memory = sqlite3.connect(":memory:", isolation_level=None, cached_statements=1000)
        self._copy = create_engine("sqlite://", creator=lambda: self._memory, poolclass=StaticPool).connect()
        self._copy.begin()  # never ends: `write` begins and ends transactions of SQLite itself
        self._is_writing = False

    def restore(self, path: str = "") -> None:
        """Makes it what the file at the URL is, or another one."""
        with closing(sqlite3.connect(path or str(self.engine.url.database))) as file:
            file.backup(self._memory)
        self._memory.execute("PRAGMA foreign_keys=ON")
        self.is_full = self._is_writing = False
        self.writers: dict[str, None] = {}
        """The names of all functions that have written to it, in order."""

    def read(self) -> AbstractContextManager[Connection]:  # type: ignore[override]
        assert not self._is_writing, "another connection would not see what this transaction has written"
        return nullcontext(self._copy)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        assert not self._is_writing, "this transaction would wait for itself"
        self._is_writing = True
        self.writers[CALL.get()] = None
        self._memory.execute("BEGIN")
        try:
            yield self._copy
            if self.is_full:
                full = sqlite3.OperationalError("database or disk is full")
                full.sqlite_errorname = "SQLITE_FULL"
                with translated():
                    raise OperationalError("COMMIT", {}, full)
        except BaseException:
            self._memory.execute("ROLLBACK")
            raise
        else:
            self._memory.execute("COMMIT")
        finally:
            self._is_writing = False
