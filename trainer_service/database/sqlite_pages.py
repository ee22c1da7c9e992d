"""Gives pages that a SQLite file no longer needs back to the file system
(https://www.sqlite.org/pragma.html#pragma_auto_vacuum).

A new file keeps the map of its pages that this needs. A file of an older build doesn't: it is written anew once, at a
start, if that is quick and the disk has room; else its free pages are only used again.
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
"""Of live data: some ten seconds of a start."""

_PAGES_AT_ONCE = 500
_KEPT_PAGES = 1000
"""Free pages that stay for the next jobs."""


def enable(engine: Engine, path: Path) -> None:
    """Have a file of an older build keep the map. Called before anything else uses the file."""
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
                "the job database is too large to be rewritten at this start, and does not shrink",
                extra={"fields": fields},
            )
            return
        try:
            with closing(connection.connection.cursor()) as cursor:
                cursor.execute(f"PRAGMA auto_vacuum={_INCREMENTAL}")
                cursor.execute("VACUUM")
        except sqlite3.Error as error:  # all or nothing: the file is as it was
            log.warning("the job database can't be rewritten, and does not shrink: %s", error)
            return
        log.info(
            "job database rewritten: it gives unused pages back from now on",
            extra={"fields": {"live_bytes": live_bytes}},
        )


def give_some_back(connection: Connection) -> bool:
    """Free pages beyond a few go back, some at a time: whether there are more. Inside a transaction that writes."""
    surplus = _pragma(connection, "freelist_count") - _KEPT_PAGES
    if surplus <= 0 or _pragma(connection, "auto_vacuum") != _INCREMENTAL:
        return False
    for _ in range(
        min(surplus, _PAGES_AT_ONCE)
    ):  # one by one: Python's driver takes the first step of the statement only, which is a page
        connection.exec_driver_sql("PRAGMA incremental_vacuum(1)")
    return surplus > _PAGES_AT_ONCE


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
