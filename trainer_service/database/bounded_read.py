"""Reads rows up to a number of bytes. Callers choose the texts of rows: a thousand jobs with long templates and label
sets could take gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, Select

MAX_BYTES = 4 << 20
"""A quarter of the largest message of the services, because a row can be larger on the wire than in the table."""
_ROWS_AT_ONCE = 20


def bounded(
    connection: Connection,
    query: Select[Any],
    limit: int,
    size_of: Callable[[RowMapping], int],
    parameters: Mapping[str, Any] | None = None,
) -> tuple[list[RowMapping], bool]:
    """The first rows, at least one, at most `limit` and at most MAX_BYTES by `size_of`; and whether there are more.

    The query may be limited to `limit + 1` rows. Omitted rows are not held in memory.
    """
    kept, used = list[RowMapping](), 0
    with connection.execute(query, parameters, execution_options={"yield_per": _ROWS_AT_ONCE}) as result:
        for row in result.mappings():
            used += size_of(row)
            if len(kept) == limit or (kept and used > MAX_BYTES):
                return kept, True
            kept.append(row)
    return kept, False
