"""Rows of XLSX and Parquet files, with openpyxl and pyarrow, which are optional dependencies."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Generator
from typing import Any, BinaryIO

from shared.errors import InvalidInput
from softprompt.data.problems import Unusable
from softprompt.data.rows import MAX_BYTES, Row, Rows, no_rows

_BATCH_ROWS = 1024
_MAX_ROWS = 1 << 20
"""The most that Excel writes. openpyxl yields an empty row for each number that a file leaves out, up to any number."""
_MAX_EMPTY_CELLS = 20_000_000
"""openpyxl fills each row up to its last cell, so that a small file can have thousands of millions of empty cells."""
_OTHER_SHEETS = "save the sheet that you need as a separate file"
_INSTALL = "pip install 'softprompt[data]'"


def sheet_rows(file: BinaryIO, name: str, which: str) -> Rows:
    """Rows of the first sheet that is not empty. Its first row that is not empty is the header. Formulas have their
    saved values.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if sum(item.file_size for item in archive.infolist()) > MAX_BYTES:
                raise InvalidInput.of(which, f"{name!r} unpacks to more than {MAX_BYTES >> 30} GiB")
    except zipfile.BadZipFile as error:
        raise InvalidInput.of(which, f"{name!r} is cut off or damaged: {error}") from None
    if not any(item.startswith("xl/") for item in names):
        kind = (
            "an OpenDocument file: save it as .xlsx or .csv"
            if "mimetype" in names
            else "a zip archive: unpack it first (unzip)"
        )
        raise InvalidInput.of(which, f"{name!r} is {kind}")
    try:
        import openpyxl
    except ImportError:
        raise InvalidInput.of(which, f"reading {name!r} needs openpyxl: {_INSTALL}; or save it as CSV UTF-8") from None
    rows = Rows(no_rows(), "row", format="XLSX", has_columns=True)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions, which don't affect the values
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except Exception as error:  # openpyxl raises whatever its XML and zip readers meet
        raise InvalidInput.of(which, f"{name!r} can't be read as XLSX: {error}") from error
    rows.items = _of_book(book, rows, name, which)
    return rows


def _of_book(book: Any, rows: Rows, name: str, which: str) -> Generator[Row]:
    sheets, read = list(book.worksheets), ""
    try:
        for sheet in sheets:
            sheet.reset_dimensions()  # some programs write wrong ones
            for row in _of_sheet(sheet, name, which):
                if not read:
                    read = sheet.title
                    if others := [other.title for other in sheets if other is not sheet]:
                        rows.advice = f"sheet {read!r} is read; not {', '.join(map(repr, others[:5]))}: {_OTHER_SHEETS}"
                        rows.report.append(rows.advice)
                yield row
            if read:
                break
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput.of(which, f"{name!r} can't be read as XLSX: {type(error).__name__}: {error}") from error
    finally:
        book.close()


def _of_sheet(sheet: Any, name: str, which: str) -> Generator[Row]:
    columns: list[str] = []
    num_empty = 0
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        values = [cell.value for cell in cells]
        num_empty += values.count(None)
        if number > _MAX_ROWS or num_empty > _MAX_EMPTY_CELLS:
            what = f"rows beyond {_MAX_ROWS}" if number > _MAX_ROWS else f"more than {_MAX_EMPTY_CELLS} empty cells"
            raise InvalidInput.of(which, f"{name!r} has {what}: delete empty rows and columns, or save it as CSV UTF-8")
        if all(value is None or (isinstance(value, str) and not value.strip()) for value in values):
            continue
        if not columns:
            while values and values[-1] is None:
                values.pop()
            columns = [
                f"column {index}" if value is None else str(value).strip()
                for index, value in enumerate(values, start=1)
            ]
            continue
        if broken := next((cell for cell in cells if getattr(cell, "data_type", "") == "e"), None):
            yield Row(
                number, Unusable(f"the cell {broken.coordinate} has the error {broken.value}", kind="error in a cell")
            )
        elif len(set(columns)) < len(columns):
            yield Row(number, Unusable(f"the header names a column twice: {', '.join(columns)}"))
        elif any(value is not None for value in values[len(columns) :]):
            yield Row(number, Unusable(f"has {len(values)} cells, the header {len(columns)}", kind="too many cells"))
        else:
            padded = values[: len(columns)] + [None] * (len(columns) - len(values))
            yield Row(number, dict(zip(columns, padded, strict=True)))


def parquet_rows(file: BinaryIO, name: str, which: str) -> Rows:
    """Rows of a Parquet file, read in batches. Raises InvalidInput naming `which`."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InvalidInput.of(
            which, f"reading {name!r} needs pyarrow: {_INSTALL}; or save it as CSV or JSON lines"
        ) from None

    def items() -> Generator[Row]:
        number = 0
        try:
            opened = ParquetFile(file)
            names = opened.schema_arrow.names
            if len(set(names)) < len(names):
                yield Row(1, Unusable(f"the file names a column twice: {', '.join(names)}"))
                return
            for batch in opened.iter_batches(_BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(number, fields)
        except (ArrowException, OSError) as error:
            raise InvalidInput.of(which, f"{name!r} can't be read as Parquet after row {number}: {error}") from error

    return Rows(items(), "row", format="Parquet")
