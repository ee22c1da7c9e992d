"""Rows whose texts callers chose, read up to a number of bytes: a thousand jobs with long templates and label sets
would take gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, RowMapping, Select

MAX_BYTES = 4 << 20
"""A quarter of the largest message that the services send: on the wire, a row may be larger than it is stored."""
_ROWS_AT_ONCE = 20


def bounded(
    connection: Connection,
    query: Select[Any],
    limit: int,
    size_of: Callable[[RowMapping], int],
    max_bytes: int = MAX_BYTES,
) -> tuple[list[RowMapping], bool]:
    """The first rows, at most `limit` and at most `max_bytes` by `size_of`, but one at least; and whether the query has
    more.

    The query may be limited to `limit + 1` rows. Rows that are left out are not held in memory.
    """
    kept, used = list[RowMapping](), 0
    with connection.execute(query, execution_options={"yield_per": _ROWS_AT_ONCE}) as result:
        for row in result.mappings():
            used += size_of(row)
            if len(kept) == limit or (kept and used > max_bytes):
                return kept, True
            kept.append(row)
    return kept, False
