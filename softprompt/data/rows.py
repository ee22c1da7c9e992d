"""A source's rows, whatever it is, each with its place in the source."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softprompt.data.problems import Unusable

MAX_BYTES = 4 << 30
"""Of what a compressed file holds, and of the examples made of a source: a small file must not fill the memory."""


@dataclass(frozen=True)
class Row:
    """`number`: of its first line in a text file, of the row of a sheet or table, or its index + 1. `fields` Unusable: it can't be read."""

    number: int
    fields: Mapping[str, Any] | Unusable


def no_rows() -> Generator[Row]:
    """Until a reader puts its own in their place."""
    yield from ()


@dataclass
class Rows:
    """`unit` is "line", "row", or empty for the items of a Python value. `report` has sentences for people, complete after the last row."""

    items: Generator[Row]
    unit: str = ""
    name: str = ""
    """Of the file; empty: none."""
    format: str = ""
    report: list[str] = field(default_factory=list)
    has_columns: bool = False
    """All rows have the same columns, so that one that isn't understood stands for all."""
    advice: str = ""
    """What to do if the rows are not understood."""
    undecodable: list[tuple[int, str]] = field(default_factory=list)
    """Lines with bytes that the file's encoding doesn't know, and which byte."""
    verbatim: Path | None = None
    """A file whose lines are what is sent, if nothing in them has to be changed."""

    def place(self, number: int) -> str:
        """How an error names a row."""
        return f"{self.unit} {number}" if self.unit else f"[{number - 1}]"
