"""Returns unused pages of an SQLite file to the file system (https://www.sqlite.org/pragma.html#pragma_auto_vacuum).

New files contain the page map that this needs. A file of an older build is rewritten once, at a start, if that is fast
and the disk has room; otherwise its free pages are only reused.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, Engine

log = logging.getLogger(__name__)

_INCREMENTAL = 2
_MAX_REWRITTEN_BYTES = 1 << 30
"""Most live data that a start rewrites, which takes some ten seconds."""

_PAGES_AT_ONCE = 500
_KEPT_PAGES = 1000
"""Free pages that stay in the file for new jobs."""


def enable(engine: Engine, path: Path) -> None:
    """Rewrites a file of an older build to contain the page map. Must run before anything else uses the file."""
    with engine.connect() as connection:
        if _pragma(connection, "auto_vacuum") == _INCREMENTAL:
            return
        live_bytes = (_pragma(connection, "page_count") - _pragma(connection, "freelist_count")) * _pragma(
            connection, "page_size"
        )
        connection.rollback()  # what follows runs outside a transaction
        free_bytes = shutil.disk_usage(path.parent).free
        if live_bytes > _MAX_REWRITTEN_BYTES or free_bytes < 3 * live_bytes:  # a copy, and a log of the copy
            fields = {"live_bytes": live_bytes, "free_bytes": free_bytes, "most_live_bytes": _MAX_REWRITTEN_BYTES}
            log.warning(
                "the job database is too large to be rewritten now and will not shrink",
                extra={"fields": fields},
            )
            return
        try:
            with closing(connection.connection.cursor()) as cursor:
                cursor.execute(f"PRAGMA auto_vacuum={_INCREMENTAL}")
                cursor.execute("VACUUM")
        except sqlite3.Error as error:  # all or nothing: the file is as it was
            log.warning("the job database can't be rewritten and will not shrink: %s", error)
            return
        log.info(
            "job database rewritten; unused pages are returned from now on",
            extra={"fields": {"live_bytes": live_bytes}},
        )


def give_some_back(connection: Connection) -> bool:
    """Returns up to `_PAGES_AT_ONCE` free pages to the file system; keeps `_KEPT_PAGES`. Runs inside a transaction that
    writes. Returns whether there are more.
    """
    surplus = _pragma(connection, "freelist_count") - _KEPT_PAGES
    if surplus <= 0 or _pragma(connection, "auto_vacuum") != _INCREMENTAL:
        return False
    # Page by page, because Python's driver executes only the first step of the statement, which frees one page.
    for _ in range(min(surplus, _PAGES_AT_ONCE)):
        connection.exec_driver_sql("PRAGMA incremental_vacuum(1)")
    return surplus > _PAGES_AT_ONCE


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
