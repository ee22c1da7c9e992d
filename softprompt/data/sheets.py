"""Rows of XLSX and Parquet files, with openpyxl and pyarrow, which are optional dependencies."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Generator
from datetime import datetime
from typing import Any, BinaryIO
from xml.etree import ElementTree

from shared.errors import InvalidInput
from shared.text.blank import SURROUNDINGS
from softprompt.data.problems import Unusable
from softprompt.data.rows import MAX_BYTES, Row, Rows, no_rows
from softprompt.data.tables import TITLE_ADVICE, named_twice
from softprompt.data.values import with_short_floats
from softprompt.types.type_names import listed

_BATCH_ROWS = 1024
_MAX_ROWS = 1 << 20
"""The most that Excel writes. openpyxl yields an empty row for each number that a file leaves out, up to any number."""
_MAX_EMPTY_CELLS = 20_000_000
"""openpyxl fills each row up to its last cell, so that a small file can have thousands of millions of empty cells."""
_ESCAPED = re.compile("_x00([01][0-9A-Fa-f]|5[Ff])_")
"""How Excel writes control characters, mostly the carriage returns of pasted texts, and the underscore before a text
that looks like such an escape. openpyxl keeps the escapes.
"""
_HIDDEN = re.compile(rb"""hidden=["'](?:1|true)["']""")
_LEADING_ZEROS = re.compile("0{2,}")
"""A number format with a least number of digits."""
_OTHER_SHEETS = "save the sheet that you need as a separate file"
_ANOTHER_FORMAT = "save it as CSV UTF-8"
INSTALL = "pip install 'softprompt[data]'"


def sheet_rows(file: BinaryIO, name: str, which: str) -> Rows:
    """Rows of the first sheet that is not empty, below its first row, the header. Formulas have their saved values."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if sum(item.file_size for item in archive.infolist()) > MAX_BYTES:
                raise InvalidInput.of(which, f"{name} unpacks to more than {MAX_BYTES >> 30} GiB")
    except zipfile.BadZipFile as error:
        raise InvalidInput.of(which, f"{name} is cut off or damaged: {error}") from None
    if not any(item.startswith("xl/") for item in names):
        if "mimetype" in names:
            raise InvalidInput.of(which, f"{name} is an OpenDocument file: save it as .xlsx or .csv")
        if any(item == "[Content_Types].xml" or item.endswith(".iwa") for item in names):  # Word's, or those of a Mac
            raise InvalidInput.of(which, f"{name} is a document of another program: save it as .xlsx or .csv")
        raise InvalidInput.of(which, f"{name} is a zip archive: unpack it first (unzip)")
    try:
        import openpyxl
    except ImportError:
        raise InvalidInput.of(which, f"reading {name} needs openpyxl: {INSTALL}; or save it as CSV UTF-8") from None
    rows = Rows(no_rows(), "row", format="XLSX", has_columns=True)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions, which don't affect the values
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except Exception as error:  # openpyxl raises any error of its XML and zip readers
        raise InvalidInput.of(which, f"{name} can't be read as XLSX ({error}): {_ANOTHER_FORMAT}") from error
    if not book.worksheets:  # of Excel's "Strict" variant, openpyxl sees none
        book.close()
        raise InvalidInput.of(
            which, f"{name} has no sheet that can be read (is it a Strict workbook?): {_ANOTHER_FORMAT}"
        )
    rows.items = _of_book(book, rows, name, which)
    return rows


def _of_book(book: Any, rows: Rows, name: str, which: str) -> Generator[Row]:
    sheets = sorted(book.worksheets, key=lambda sheet: sheet.sheet_state != "visible")  # people look for what they see
    read = ""
    try:
        for sheet in sheets:
            sheet.reset_dimensions()  # some programs write wrong ones
            for row in _of_sheet(sheet, rows, name, which):
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
        reason = f"{type(error).__name__}: {error}"
        raise InvalidInput.of(which, f"{name} can't be read as XLSX ({reason}): {_ANOTHER_FORMAT}") from error
    finally:
        book.close()


def _of_sheet(sheet: Any, rows: Rows, name: str, which: str) -> Generator[Row]:
    columns: list[str] = []
    num_empty, is_full, has_gaps, has_rows, header = 0, True, False, False, 0
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        values = [_value(cell) for cell in cells]
        num_empty += values.count(None)
        if number > _MAX_ROWS or num_empty > _MAX_EMPTY_CELLS:
            what = f"rows beyond {_MAX_ROWS}" if number > _MAX_ROWS else f"more than {_MAX_EMPTY_CELLS} empty cells"
            raise InvalidInput.of(which, f"{name} has {what}: delete empty rows and columns, or save it as CSV UTF-8")
        if all(value is None or (isinstance(value, str) and not value.strip()) for value in values):
            has_gaps = has_gaps or bool(columns)
            continue
        if not columns:
            while values and values[-1] is None:
                values.pop()
            numbered = enumerate(values, start=1)
            named = ((index, "" if value is None else str(value).strip(SURROUNDINGS)) for index, value in numbered)
            columns, header = [name or f"column {index}" for index, name in named], number
            if twice := named_twice(columns):
                yield Row(number, twice)
                return
            continue
        has_rows = True
        if broken := next((cell for cell in cells if getattr(cell, "data_type", "") == "e"), None):
            reason = f"the cell {broken.coordinate} has the error {broken.value}"
            yield Row(number, Unusable(reason, kind="error in a cell"))
        elif any(value is not None for value in values[len(columns) :]):
            reason = f"has {len(values)} cells, the header {len(columns)} ({', '.join(columns)[:60]})"
            advice = TITLE_ADVICE if len(columns) == 1 else ""
            yield Row(number, Unusable(f"{reason}: every column needs a name{advice}", kind="too many cells"))
        else:
            padded = values[: len(columns)] + [None] * (len(columns) - len(values))
            is_full = is_full and None not in padded
            yield Row(number, dict(zip(columns, padded, strict=True)))
    may_lack_cells = has_gaps or not is_full
    if not may_lack_cells and not (has_rows and _may_hide(sheet)):
        return
    hidden, empty = _hidden_and_empty(sheet, header, len(columns), may_lack_cells)
    if has_rows and hidden:
        rows.report.append(hidden)
    if may_lack_cells:
        rows.empty_cells = empty
    if has_gaps and empty:
        rows.report.append(empty)


def _value(cell: Any) -> Any:
    """A date without a time of day as a date, since XLSX has only moments; a text with its control characters; a number
    that the cell shows with leading zeros, such as a postcode, with them.
    """
    value = cell.value
    if isinstance(value, float) and value.is_integer():  # XLSX stores integers and floats alike
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and _LEADING_ZEROS.fullmatch(cell.number_format):
        return f"{value:0{len(cell.number_format)}d}"
    if isinstance(value, str):
        return _ESCAPED.sub(lambda escape: chr(int(escape[1], 16)), value)
    return value.date() if isinstance(value, datetime) and "h" not in cell.number_format.lower() else value


def _may_hide(sheet: Any) -> bool:
    """Whether the sheet's XML has a word that hides rows or columns. A search takes far less time than parsing."""
    before = b""
    with sheet._get_source() as source:
        while chunk := source.read(1 << 20):
            if _HIDDEN.search(before + chunk):
                return True
            before = chunk[-20:]
    return False


def _hidden_and_empty(sheet: Any, header: int, num_columns: int, with_formulas: bool) -> tuple[str, str]:
    """Sentences about columns and rows (but the header's) that the sheet hides, and about merged cells and, if asked
    for, formulas without a saved value, which openpyxl reads as empty. Empty where there are none.
    """
    from openpyxl.utils import get_column_letter

    merged = formula = ""
    hidden_rows: list[str] = []
    hidden_columns: list[str] = []
    with sheet._get_source() as source:  # the sheet's XML, of which openpyxl's own reader skips all this
        for _, element in ElementTree.iterparse(source):
            tag = element.tag.rpartition("}")[2]
            if tag == "mergeCell":
                merged = merged or element.get("ref", "")
            elif tag == "c" and with_formulas and not formula and _lacks_value(element):
                formula = element.get("r", "")
            elif tag == "col" and _is_hidden(element):
                numbers = range(int(element.get("min", "0")), min(int(element.get("max", "0")), num_columns) + 1)
                hidden_columns += map(get_column_letter, numbers)
            elif tag == "row" and _is_hidden(element) and any(len(cell) for cell in element):
                hidden_rows += [number for number in [element.get("r", "?")] if number != str(header)]
            if tag in ("row", "mergeCell"):
                element.clear()
    hidden = []
    if hidden_rows:
        hidden.append(f"hidden or filtered rows are read, too: {len(hidden_rows)} (the first is row {hidden_rows[0]})")
    if hidden_columns:
        hidden.append(f"hidden columns are read, too: {listed(hidden_columns, 5)}")
    sentences = {
        "merged cells have their value in the first one only: unmerge them and fill in each": merged,
        "formulas without a saved value are empty: open the file in a spreadsheet program and save it": formula,
    }
    empty = "; ".join(f"{sentence} ({place})" for sentence, place in sentences.items() if place)
    return "; ".join(hidden), empty


def _lacks_value(cell: ElementTree.Element) -> bool:
    return cell.find("{*}f") is not None and not cell.findtext("{*}v")


def _is_hidden(element: ElementTree.Element) -> bool:
    return element.get("hidden") in ("1", "true")


def parquet_rows(file: BinaryIO, name: str, which: str) -> Rows:
    """Rows of a Parquet file, read in batches. Raises InvalidInput naming `which`."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        needs = f"reading {name} needs pyarrow: {INSTALL}"
        raise InvalidInput.of(which, f"{needs}; or save it as CSV or JSON lines") from None

    def items() -> Generator[Row]:
        number = 0
        try:
            opened = ParquetFile(file)
            schema = opened.schema_arrow
            names = schema.names
            if len(set(names)) < len(names):
                yield Row(1, Unusable(f"the file names a column twice: {', '.join(names)}"))
                return
            for batch in opened.iter_batches(_BATCH_ROWS):
                for fields in with_short_floats(batch.to_pylist(), dict(zip(names, schema.types, strict=True))):
                    number += 1
                    yield Row(number, fields)
        except (ArrowException, OSError, ValueError, OverflowError) as error:  # also of values that Python can't have
            raise InvalidInput.of(which, f"{name} can't be read as Parquet after row {number}: {error}") from error

    return Rows(items(), "row", format="Parquet")
