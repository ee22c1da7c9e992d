"""Writes rows as JSON lines, CSV, TSV, XLSX or Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from shared.close_names import did_you_mean
from shared.errors import AlreadyExists, InvalidInput, NotFound, PreconditionFailed
from shared.text.blank import is_unicode
from softprompt.data.problems import Unusable
from softprompt.data.sheets import INSTALL
from softprompt.data.values import is_missing, text_of
from softprompt.output_files import replaced

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".xlsx": "xlsx"}
FORMATS |= {".parquet": "parquet", ".pq": "parquet"}
STANDARD_OUTPUT = "-"
_MAX_CELL_CHARS, _MAX_SHEET_ROWS = 32_767, 1_048_576
"""Of an XLSX sheet."""
Rows = Iterable[Mapping[str, Any]]


def format_of(path: str, format: str = "") -> str:
    """The format of an output file, from `format` or the file's name. Raises InvalidInput."""
    known = sorted(set(FORMATS.values()))
    found = format.lower() or FORMATS.get(Path(path).suffix.lower(), "jsonl" if path == STANDARD_OUTPUT else "")
    if found not in known:
        given = format or Path(path).suffix or path
        meant = did_you_mean(given.lstrip("."), known)
        raise InvalidInput.of("output", f"{given!r} is none of the formats {', '.join(known)}{meant}")
    if path == STANDARD_OUTPUT and found in ("xlsx", "parquet"):
        raise InvalidInput.of("output", f"{found} is not text and can't go to standard output: name a file")
    return found


def check_output(path: str, overwrite: bool) -> None:
    """Raises an error now for a file that could not be written later."""
    if path == STANDARD_OUTPUT:
        return
    target, directory = Path(path), Path(path).absolute().parent
    if target.is_dir():
        raise InvalidInput.of("output", f"{path!r} is a directory; name a file in it")
    is_there = target.is_file() or (target.is_symlink() and not target.exists())
    if is_there and not overwrite:
        raise AlreadyExists(f"{path} exists; --overwrite replaces it")
    if not directory.is_dir():
        raise NotFound("directory", str(target.parent))
    if not (os.access(directory, os.W_OK) or os.access(target, os.W_OK)):
        raise PreconditionFailed(f"{directory} is not writable")


def write_rows(path: str, format: str, columns: Sequence[str], rows: Rows, *, overwrite: bool = False) -> None:
    """Write `columns` of the rows in their order; `-` is standard output. Half a surrogate pair becomes U+FFFD. Raises
    what `check_output` raises.
    """
    columns, rows = _valid(list(columns)), map(_valid, rows)
    if path == STANDARD_OUTPUT:
        _write_text(sys.stdout, format, columns, rows)
        sys.stdout.flush()
        return
    check_output(path, overwrite)
    with replaced(Path(path)) as written:
        if format in ("xlsx", "parquet"):
            (_write_xlsx if format == "xlsx" else _write_parquet)(written, columns, rows)
        else:
            with written.open("w", encoding="utf-8", newline="") as file:
                _write_text(file, format, columns, rows)
        check_output(path, overwrite)


def _write_text(file: IO[str], format: str, columns: Sequence[str], rows: Rows) -> None:
    if format == "jsonl":
        for row in rows:
            fields = {name: _plain(row[name]) for name in columns if name in row}
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")
        return
    writer = csv.writer(file, delimiter="\t" if format == "tsv" else ",", lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [_cell(row.get(name)) for name in columns]
        if len(cells) == 1 and not cells[0]:
            file.write('""\n')  # a blank line would be no row
        else:
            writer.writerow(cells)


def _write_xlsx(path: Path, columns: Sequence[str], rows: Rows) -> None:
    try:
        import openpyxl
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.utils.exceptions import IllegalCharacterError
        from openpyxl.worksheet.worksheet import Worksheet
    except ImportError:
        raise InvalidInput.of("output", f"writing XLSX needs openpyxl: {INSTALL}") from None
    book = openpyxl.Workbook()  # openpyxl's writing mode leaves its temporary file open after an error
    sheet = book.active
    assert isinstance(sheet, Worksheet)

    def cells(values: Iterable[Any], number: int) -> list[Any]:
        made = []
        for column, value in zip(columns, values, strict=True):
            if not isinstance(value, bool | int | float) or not abs(value) <= sys.float_info.max:
                value = _cell(value)
            if isinstance(value, str) and len(value) > _MAX_CELL_CHARS:
                reason = f"has {len(value)} characters; a cell of XLSX holds {_MAX_CELL_CHARS}: choose another format"
                raise InvalidInput.of(f"row {number} {column}", reason)
            try:
                cell = WriteOnlyCell(sheet, value)
            except IllegalCharacterError:
                reason = "has a control character, which XLSX can't hold: choose another format"
                raise InvalidInput.of(f"row {number} {column}", reason) from None
            if isinstance(value, str):
                cell.data_type = "s"  # a text that begins with = is not a formula
            made.append(cell)
        return made

    def append(values: Iterable[Any], number: int) -> None:
        made = cells(values, number)
        with _workbook_errors():
            sheet.append(made)

    append(columns, 1)
    for number, row in enumerate(rows, start=2):
        if number > _MAX_SHEET_ROWS:
            raise InvalidInput.of("output", f"a sheet of XLSX holds {_MAX_SHEET_ROWS} rows: choose another format")
        append((row.get(name) for name in columns), number)
    content = io.BytesIO()
    with _workbook_errors():
        book.save(content)  # to memory: openpyxl would print an error of the file again later
    path.write_bytes(content.getvalue())


@contextmanager
def _workbook_errors() -> Iterator[None]:
    """Raises PreconditionFailed for any error of openpyxl, such as those of its XML writers."""
    try:
        yield
    except Exception as error:
        is_of_file = isinstance(error, OSError) or type(error).__name__ == "SerialisationError"  # lxml's
        place = f", which needs space in {tempfile.gettempdir()}" if is_of_file else ""
        raise PreconditionFailed(f"can't make the workbook{place}: {error}") from error


def _write_parquet(path: Path, columns: Sequence[str], rows: Rows) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InvalidInput.of("output", f"writing Parquet needs pyarrow: {INSTALL}") from None
    values: dict[str, list[Any]] = {column: [] for column in columns}
    for row in rows:
        for column in columns:
            value = row.get(column)
            values[column].append(None if is_missing(value) else value)
    arrays = {}
    for column, items in values.items():
        try:
            arrays[column] = pyarrow.array(items)
        except (pyarrow.ArrowException, TypeError, OverflowError):  # values of several types
            arrays[column] = pyarrow.array([None if item is None else _cell(item) for item in items], pyarrow.string())
    with path.open("wb") as file:  # of a path, pyarrow removes the file after an error, even a device
        parquet.write_table(pyarrow.table(arrays), file)


def _valid(value: Any) -> Any:
    """The value with valid Unicode in all texts, also names and those inside lists and objects."""
    if isinstance(value, str):
        return value if is_unicode(value) else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {_valid(key): _valid(item) for key, item in value.items()}
    return [_valid(item) for item in value] if isinstance(value, list) else value


def _cell(value: Any) -> str:
    """A value in a table of texts: lists and objects as JSON."""
    if is_missing(value):
        return ""
    plain = _plain(value)
    if plain is None:  # an infinite number, which JSON doesn't have
        return str(value)
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, dict | list) else text_of(plain, "")


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if is_missing(value) or (isinstance(value, float) and math.isinf(value)):
        return None
    if isinstance(value, str | bool | int | float):
        return value
    try:
        return text_of(value, "")
    except Unusable:
        return str(value)
