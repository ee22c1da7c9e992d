"""Rows of CSV and TSV files. The header decides the delimiter; quotes follow RFC 4180."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from shared.text.blank import SURROUNDINGS, is_blank
from shared.text.counted import counted
from shared.text.spaced_quotes import UnclosedQuote, without_spaces
from softprompt.data.problems import Unusable
from softprompt.data.rows import MAX_BYTES, Row

_DELIMITERS = ",;\t|"
_NAMES = {",": "CSV", ";": "CSV with semicolons", "\t": "TSV", "|": "CSV with bars"}
_MAX_HEADER_LINES = 20
TITLE_ADVICE = "; if the first line is a title, delete it"
"""Where the header is one cell and a row has several."""
_MAX_LINES = 2000
"""A cell of more lines than this is taken for an unintended opening quote."""


class TableReader:
    """Rows of a delimited file as mappings. `format` is known after the first row."""

    def __init__(self, lines: Iterable[str], is_tsv: bool = False) -> None:
        csv.field_size_limit(MAX_BYTES >> 1)  # of the whole process; Python's 128 KiB are less than a long document
        self._lines, self._is_tsv = iter(lines), is_tsv
        self._record: list[str] = []
        """The lines of the current row."""
        self._declared = ""
        """The delimiter that the first line names."""
        self.format = "CSV"
        self.columns: list[str] = []
        self.num_blank = self.num_headers = 0

    def __iter__(self) -> Generator[Row]:
        header, skipped = self._header()
        delimiter = self._delimiter(header)
        self.format = _NAMES.get(delimiter, f"CSV with {delimiter!r}")
        start, reader = skipped, csv.reader(self._joined(header), delimiter=delimiter, strict=True)
        while True:
            number = start + reader.line_num + 1
            self._record.clear()
            try:
                cells = next(reader, None)
                cells = cells and without_spaces(cells, self._record, delimiter)
            except (csv.Error, UnclosedQuote) as error:
                yield Row(number, Unusable(_explained(error), kind="csv"))
                continue
            if reader.line_num + start - number > _MAX_LINES:
                yield Row(number, Unusable('has a quote (") that is not closed within 2,000 lines', kind="csv"))
                return
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                self.num_blank += 1
            elif not self.columns:
                self._set_columns(cells)
                if twice := named_twice(self.columns):
                    yield Row(number, twice)
                    return
            elif cells[: len(self.columns)] == self._raw_header:
                self.num_headers += 1  # of a second file that was appended to a first
            else:
                yield Row(number, self._fields(cells))

    def _joined(self, header: Iterable[str]) -> Iterator[str]:
        """The lines with line ends, which cells of several lines keep."""
        for line in itertools.chain(header, self._lines):
            line += "\n"
            self._record.append(line)
            yield line

    def _header(self) -> tuple[list[str], int]:
        """The first line that is not blank, with the lines that its quotes include, and the number of lines before it.
        Excel's `sep=;` counts as blank.
        """
        skipped = 0
        for line in self._lines:
            if line.lower().startswith("sep="):
                self._declared = line[4:5]
            elif line.strip():
                header = [line]
                while "".join(header).count('"') % 2 and len(header) < _MAX_HEADER_LINES:
                    if (more := next(self._lines, None)) is None:
                        break
                    header.append(more)
                return header, skipped
            skipped += 1
        return [], skipped

    def _delimiter(self, header: Sequence[str]) -> str:
        text = "\n".join(header)
        known = ("\t" if self._is_tsv else "", self._declared)
        if found := next((delimiter for delimiter in known if delimiter and delimiter in text), ""):
            return found
        return max(_DELIMITERS, key=lambda delimiter: len(next(csv.reader(io.StringIO(text), delimiter=delimiter), [])))

    def _set_columns(self, cells: Sequence[str]) -> None:
        self._raw_header = list(cells)
        while self._raw_header and is_blank(self._raw_header[-1]):
            self._raw_header.pop()
        self.columns = [
            cell.strip(SURROUNDINGS) or f"column {index}" for index, cell in enumerate(self._raw_header, start=1)
        ]

    def _fields(self, cells: Sequence[str]) -> dict[str, Any] | Unusable:
        if any(cell.strip() for cell in cells[len(self.columns) :]):
            advice = "a cell with the delimiter in it must be in double quotes"
            advice += TITLE_ADVICE if len(self.columns) == 1 else ""
            return Unusable(f"{self._counts(cells)}: {advice}", kind="too many cells")
        if len(cells) < len(self.columns):
            advice = "an empty cell needs its delimiter, too"
            return Unusable(f"{self._counts(cells)}: {advice}", kind="too few cells")
        return dict(zip(self.columns, cells, strict=False))

    def _counts(self, cells: Sequence[str]) -> str:
        names = ", ".join(self.columns)[:60]
        return f"has {counted(len(cells), 'cell')}, the header {len(self.columns)} ({names})"


def named_twice(columns: Sequence[str]) -> Unusable | None:
    """The error of a header with a repeated name: no row below it can be read."""
    if len(set(columns)) == len(columns):
        return None
    return Unusable(f"the header names a column twice: {', '.join(columns)}; rename one, what follows is not read")


def _explained(error: csv.Error | UnclosedQuote) -> str:
    if isinstance(error, UnclosedQuote):
        return 'has a quote (") after a space that is not closed on the same line: remove the space'
    if "unexpected end" in str(error):
        return 'has a quote (") that is never closed'
    return f"is not valid CSV: {error}; a quote inside a cell is written twice"
