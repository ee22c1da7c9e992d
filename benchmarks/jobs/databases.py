"""Starts a PostgreSQL server for a measurement, like the tests, but with synced writes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.trainer_service.postgres import Postgres, find_binaries


@contextmanager
def postgresql() -> Iterator[str | None]:
    """The server's URL, or None if PostgreSQL's programs are not installed."""
    binaries = find_binaries()
    if binaries is None:
        sys.stderr.write("PostgreSQL is not installed; skipping it\n")
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="pg-") as directory:
        server = Postgres(binaries, Path(directory), synced=True)
        server.start()
        try:
            yield server.create_database("jobs")
        finally:
            server.stop()
