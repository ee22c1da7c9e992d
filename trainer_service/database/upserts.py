"""INSERT statements of SQLite and PostgreSQL that change a row if it exists."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert(is_sqlite: bool, table: Table) -> Any:
    """An INSERT that has `on_conflict_do_nothing` and `on_conflict_do_update`."""
    return sqlite.insert(table) if is_sqlite else postgresql.insert(table)


@lru_cache(maxsize=64)
def upsert(is_sqlite: bool, table: Table, key: tuple[str, ...], values: tuple[str, ...], newest: str) -> Any:
    """An INSERT that changes the row with this key, if its value of the column `newest` is not larger. Built once."""
    statement = insert(is_sqlite, table)
    where = table.c[newest] <= statement.excluded[newest] if newest else None
    return or_changes(statement, key, values, where)


def or_changes(statement: Any, key: Iterable[str], values: Iterable[str], where: ColumnElement[bool] | None) -> Any:
    """The INSERT, which changes the values of the row with this key if there is one and it meets the condition."""
    new = {name: statement.excluded[name] for name in values}  # not the values: a checkpoint would be sent twice
    return statement.on_conflict_do_update(index_elements=list(key), set_=new, where=where)
