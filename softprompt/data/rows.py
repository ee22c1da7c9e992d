"""The rows of a source of any format, each with its place in the source."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.location import Location
from softprompt.data.problems import Unusable

MAX_BYTES = 4 << 30
"""Limit of a decompressed file and of the examples of one source: a small compressed file must not fill the memory."""


@dataclass(frozen=True)
class Row:
    """`number` is the first line in a text file, the row of a table, or the index + 1. `fields` may be Unusable."""

    number: int
    fields: Mapping[str, Any] | Unusable


def no_rows() -> Generator[Row]:
    """An empty generator, which a reader replaces by its own."""
    yield from ()


@dataclass
class Rows:
    """`unit` is "line", "row", or empty for Python values. `report` has sentences, all of them after the last row."""

    items: Generator[Row]
    unit: str = ""
    name: str = ""
    """Name of the file; empty for Python values."""
    format: str = ""
    report: list[str] = field(default_factory=list)
    has_columns: bool = False
    """All rows have the same columns, so an unknown layout of one row is an error of all."""
    advice: str = ""
    """What to do if the layout is unknown."""
    empty_cells: str = ""
    """Why cells with a visible value were read as empty, and what to do."""
    undecodable: list[tuple[int, str]] = field(default_factory=list)
    """(line, byte) of bytes that the encoding does not have."""
    encoding_name: str = ""
    """The encoding by which the file was read, as errors name it."""
    likely_encoding: str = ""
    """The encoding that the file probably has; empty: unknown."""
    verbatim: Path | None = None
    """The file itself, if its lines can be sent unchanged."""

    @property
    def encoding_fix(self) -> dict[str, str]:
        """The option that names the likely encoding, if there is one."""
        return {"--encoding": self.likely_encoding} if self.likely_encoding else {}

    @property
    def encoding_advice(self) -> str:
        """What to do about bytes that the encoding does not have."""
        if self.likely_encoding:
            return f"{self.likely_encoding} is the usual encoding of programs on Windows"
        return "name the file's encoding with --encoding, such as cp1251 (Cyrillic), gb18030 (Chinese) or shift_jis"

    def place(self, number: int) -> Location:
        """The place of a row for errors."""
        return Location(row=number, unit=self.unit)
