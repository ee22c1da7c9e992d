"""A caller's prompt patterns as SQL conditions, so that a query reads no rows of other prompts and its time reveals
nothing about them.

`*` matches any characters, as in `Caller.may_use`; all other characters match themselves, and case matters. The part of
a pattern before its first `*` becomes a range of the index of prompts; a pattern that begins with `*` scans all names
of that index. The range compares the column byte by byte (`schema.PROMPT_NAME`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Column, Connection, and_, false, func, or_, true
from sqlalchemy.sql import ColumnElement

from trainer_service.database.schema import jobs
from trainer_service.jobs.states import JobState

_ANY = "*"


def sees_all(patterns: Sequence[str]) -> bool:
    """Whether the patterns match every prompt."""
    return _ANY in patterns


def visible(patterns: Sequence[str], connection: Connection) -> ColumnElement[bool]:
    """A condition: a job's prompt matches one of the patterns. Without patterns, no job matches."""
    return matching(jobs.c.prompt, patterns, connection)


def matching(column: Column[Any], patterns: Sequence[str], connection: Connection) -> ColumnElement[bool]:
    """A condition: the prompt in `column` matches one of the patterns. Without patterns, none matches."""
    return condition(column, tuple(patterns), connection.dialect.name)


@lru_cache(maxsize=256)
def condition(column: Column[Any], patterns: tuple[str, ...], dialect: str) -> ColumnElement[bool]:
    """`matching` for a dialect by name. The same arguments give the same object, whose SQL is compiled once."""
    if sees_all(patterns):
        return true()
    return or_(false(), *(_matches(column, pattern, dialect == "sqlite") for pattern in sorted(set(patterns))))


def in_states(states: Iterable[JobState], patterns: Sequence[str]) -> ColumnElement[bool]:
    """A condition: a job is in one of the states. If only some jobs are visible, it avoids indexes over the states of
    all jobs.
    """
    column = jobs.c.state if sees_all(patterns) else func.coalesce(jobs.c.state, "")
    return column.in_(sorted(state.value for state in states))


def _matches(column: Column[Any], pattern: str, is_sqlite: bool) -> ColumnElement[bool]:
    prefix, star, rest = pattern.partition(_ANY)
    if not star:
        return column == pattern
    conditions: list[ColumnElement[bool]] = [true()]
    if prefix:
        conditions += [column >= prefix, column < _after(prefix)]
    if rest.strip(_ANY):
        conditions.append(column.op("GLOB")(_glob(pattern)) if is_sqlite else column.like(_like(pattern), escape="\\"))
    return and_(*conditions)


def _after(prefix: str) -> str:
    """The first string after all that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _glob(pattern: str) -> str:
    """The pattern for SQLite's GLOB, whose other two wildcards are escaped; SQLite's LIKE ignores case."""
    return pattern.replace("[", "[[]").replace("?", "[?]")


def _like(pattern: str) -> str:
    for wildcard in "\\%_":
        pattern = pattern.replace(wildcard, f"\\{wildcard}")
    return pattern.replace(_ANY, "%")
