"""A PostgreSQL for a measurement, as the tests start theirs, but with its writes synced."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.trainer_service.postgres import Postgres, find_binaries


@contextmanager
def postgresql() -> Iterator[str | None]:
    """Its URL; None where its programs are not installed."""
    binaries = find_binaries()
    if binaries is None:
        sys.stderr.write("POSTGRESQL IS NOT INSTALLED: it is not measured\n")
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="pg-") as directory:
        server = Postgres(binaries, Path(directory), synced=True)
        server.start()
        try:
            yield server.create_database("jobs")
        finally:
            server.stop()
