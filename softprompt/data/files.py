"""Rows of a file. Its first bytes decide the format; its name decides only between formats of text."""

from __future__ import annotations

import gzip
import io
import itertools
import math
import os
import zlib
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import BinaryIO, cast

from shared.errors import InvalidInput
from softprompt.data.json_rows import is_json_lines, json_document, json_lines
from softprompt.data.problems import Unusable
from softprompt.data.rows import MAX_BYTES, Row, Rows, no_rows
from softprompt.data.sheets import parquet_rows, sheet_rows
from softprompt.data.tables import TableReader
from softprompt.data.text_lines import TextLines
from softprompt.input_files import STANDARD_INPUT, input_file, shown_name
from softprompt.types.data import Data

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04\x95", b"\x80\x05\x95")
_OLE = b"\xd0\xcf\x11\xe0"
_FOREIGN: tuple[tuple[bytes | tuple[bytes, ...], str], ...] = (
    (_OLE, "is an Excel file of the old format: save it as .xlsx or .csv"),
    (b"PK\x05\x06", "is an empty archive"),
    (b"\x1f\x8b", "is compressed twice: unpack it first (gunzip)"),
    (b"BZh", "is compressed with bzip2: unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first (unxz)"),
    (b"(\xb5/\xfd", "is compressed with zstd: unpack it first (unzstd)"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
    (b'\x04"M\x18', "is compressed with lz4: unpack it first (unlz4)"),
    (b"Rar!", "is a RAR archive: unpack it first (unrar)"),
    ((b"ARROW1", b"FEA1", b"\xff\xff\xff\xff"), "is an Arrow file: save it as Parquet"),  # the last one is a stream
    (b"ORC", "is an ORC file: save it as Parquet"),
    (b"SQLite format 3", "is a database: save the table as CSV"),
    (b"version https://git-lfs", "is a pointer of Git LFS and not the file: run `git lfs pull`"),
    (b"%PDF", "is a PDF document: examples come as CSV, TSV, XLSX, Parquet, JSON or JSON lines"),
    (_PICKLES, "is a pickle, which may run code when it is read: save it as Parquet"),
)
_YAML = "is a YAML file: save it as JSON lines"
_MARKUP = (
    ((b"<!doctype html", b"<html"), "is a web page, perhaps of a login or an error: download the file itself"),
    (b"<table", "is an HTML table: open it in a spreadsheet program and save it as XLSX or CSV"),
    ((b"---\n", b"---\r", b"%yaml"), _YAML),
    (b"<?xml", "is an XML file: examples come as CSV, TSV, XLSX, Parquet, JSON or JSON lines"),
    (b"{\\rtf", "is a document of a word processor: examples come as CSV, TSV, XLSX, Parquet, JSON or JSON lines"),
)
"""Beginnings of text that is not a table, in upper or lower case, after any blanks, and the advice for each."""
_TAR, _TAR_AT = b"ustar", 257
_HEAD_BYTES = 512
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_YAML_SUFFIXES = (".yaml", ".yml")
_TABLE_SUFFIXES = (".csv", ".tsv", ".tab")


def file_rows(source: str | os.PathLike[str], data: Data, which: str) -> Rows:
    """The rows of a file, which is closed after the last one. Raises NotFound, or InvalidInput naming `which`."""
    source = os.fsdecode(source)
    content = input_file(source, which)
    path = content if isinstance(content, Path) else Path(source)
    try:
        file: BinaryIO = content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
    except OSError as error:
        raise InvalidInput.of(which, f"can't read {str(path)!r}: {error.strerror or error}") from error
    try:
        rows = _rows(file, path, data, which)
    except BaseException:
        file.close()
        raise
    rows.name = "standard input" if path == STANDARD_INPUT else path.name
    if isinstance(content, bytes):
        rows.verbatim = None
    rows.items = _closing(rows.items, file, path, which)
    return rows


def _rows(file: BinaryIO, path: Path, data: Data, which: str) -> Rows:
    name = path.name.lower()
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    compressed = head.startswith(b"\x1f\x8b")
    if compressed:
        name = name.removesuffix(".gz")
        file = cast(BinaryIO, _Bounded(gzip.GzipFile(fileobj=file), shown_name(path), which))
        head = file.read(_HEAD_BYTES)
        file.seek(0)
    if not head:
        raise InvalidInput.of(which, f"{shown_name(path)} is empty")
    if head.startswith(b"PK\x03\x04"):
        return sheet_rows(_seekable(file, compressed), shown_name(path), which)
    if head.startswith(b"PAR1"):
        return parquet_rows(_seekable(file, compressed), shown_name(path), which)
    if head.startswith(_OLE) and name.endswith((".xlsx", ".xlsm")):
        advice = "has a password or is of the old format of Excel: save it as .xlsx without a password, or as .csv"
        raise InvalidInput.of(which, f"{shown_name(path)} {advice}")
    if advice := _foreign(head):
        raise InvalidInput.of(which, f"{shown_name(path)} {advice}")
    return _text_rows(file, path, name, data, compressed, which)


def _foreign(head: bytes) -> str:
    """The kind of a file that holds no examples, and what to do; empty for any other file."""
    if head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return "is a tar archive: unpack it first (tar -xf)"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    known = ((head, _FOREIGN), (text, _MARKUP))
    return next((advice for begin, forms in known for magic, advice in forms if begin.startswith(magic)), "")


def _text_rows(file: BinaryIO, path: Path, name: str, data: Data, compressed: bool, which: str) -> Rows:
    lines = TextLines(file, data.encoding, which)
    if lines.is_binary:
        lines.release()
        advice = (
            "give CSV, TSV, XLSX, Parquet, JSON or JSON lines, or name the encoding of a text (--encoding utf-16-le)"
        )
        raise InvalidInput.of(which, f"{shown_name(path)} has NUL bytes, as binary formats have: {advice}")
    begin, first, second = _beginning(lines)
    suffix = Path(name).suffix
    every = itertools.chain(begin, lines.rest)
    looks_like_json = first.startswith(("{", "[")) and (suffix not in _TABLE_SUFFIXES or is_json_lines(first, second))
    if suffix in _YAML_SUFFIXES and not looks_like_json:
        lines.release()
        raise InvalidInput.of(which, f"{shown_name(path)} {_YAML}")
    is_called_json = suffix in _JSON_SUFFIXES
    if is_called_json and _looks_like_a_table(first) and _looks_like_a_table(second):
        advice = "is not JSON, despite its name: if it is a table, give it a name that ends in .csv"
        lines.release()
        raise InvalidInput.of(which, f"{shown_name(path)} {advice}")
    if first.startswith("|") and second.startswith("|") and "---" in second and not second.strip("|:- \t\r\n"):
        lines.release()
        raise InvalidInput.of(which, f"{shown_name(path)} is a Markdown table: save it as CSV")
    rows = Rows(no_rows(), "line")
    if looks_like_json or is_called_json:
        if is_json_lines(first, second) or not looks_like_json:
            items, rows.format = _decoded(json_lines(every), lines), "JSON lines"
            if not compressed and lines.encoding == "utf-8":
                rows.verbatim = path
        else:
            items, rows.format = _document(every, rows, lines), "JSON"
        rows.items = _noting(items, rows, lines, None)
    else:
        rows.has_columns = True
        advice = "if its first line is already an example, put a header before it"
        rows.advice = f"{advice}: (echo input,label; cat FILE) > with-header.csv"
        table = TableReader(every, is_tsv=suffix in (".tsv", ".tab"))
        rows.items = _noting(_decoded(iter(table), lines), rows, lines, table)
    return rows


def _looks_like_a_table(line: str) -> bool:
    return not line.startswith(("{", "[", '"')) and any(delimiter in line for delimiter in ",;\t|")


def _beginning(lines: TextLines) -> tuple[list[str], str, str]:
    """The lines up to the second one that is not blank, and the first two lines that are not blank."""
    begin: list[str] = []
    filled: list[str] = []
    for line in lines.rest:
        begin.append(line)
        if line.strip():
            filled.append(line.strip())
        if len(filled) == 2:
            break
    first, second = [*filled, "", ""][:2]
    return begin, first, second


def _noting(items: Generator[Row], rows: Rows, lines: TextLines, table: TableReader | None) -> Generator[Row]:
    """The items. After the last one, `rows` has the format, the report and the undecodable lines."""
    try:
        yield from items
    finally:
        if lines.has_bare_returns or lines.has_end_mark:  # not part of a line here, but where the file is read as it is
            rows.verbatim = None
        lines.release()
    if table is not None:
        rows.format = table.format
        if table.num_blank:
            rows.report.append(f"empty rows skipped: {table.num_blank}")
        if table.num_headers:
            rows.report.append(f"repeated header lines skipped: {table.num_headers}")
    if lines.encoding not in ("utf-8", "utf-8-sig"):
        rows.format += f", {lines.encoding.upper()}"
    rows.undecodable, rows.encoding_name = lines.undecodable, lines.encoding_name
    rows.likely_encoding = lines.likely_encoding if lines.encoding.startswith("utf") else ""


def _document(every: Iterable[str], rows: Rows, lines: TextLines) -> Generator[Row]:
    text = "\n".join(every)
    yield from (
        (_undecodable(found, lines) for found in lines.undecodable) if lines.undecodable else json_document(text, rows)
    )


def _decoded(items: Generator[Row], lines: TextLines) -> Generator[Row]:
    """The rows. One with a byte that the encoding doesn't have is unusable; nothing is read below such a header."""
    row, refused, num_seen = Row(0, {}), 0, 0  # row 0 is the header
    for following in itertools.chain(items, (None,)):  # all lines of a row have been read when the next row begins
        end = math.inf if following is None else max(following.number, row.number + 1)
        bad = [found for found in lines.undecodable[num_seen:] if found[0] < end]
        num_seen += len(bad)
        if bad:
            refused = row.number
            yield _undecodable(bad[0], lines)
            if not row.number:
                return
        elif row.number != refused:  # a line may have several objects
            yield row
        row = following or row


def _undecodable(found: tuple[int, str], lines: TextLines) -> Row:
    return Row(found[0], Unusable(f"is not {lines.encoding_name}: byte {found[1]}", kind="encoding"))


def _closing(items: Generator[Row], file: BinaryIO, path: Path, which: str) -> Generator[Row]:
    with file:
        try:
            yield from items
        except OSError as error:
            raise InvalidInput.of(which, f"can't read {str(path)!r}: {error.strerror or error}") from error


def _seekable(file: BinaryIO, compressed: bool) -> BinaryIO:
    return io.BytesIO(file.read()) if compressed else file


class _Bounded(io.RawIOBase):
    """A decompressed file that refuses to give more than MAX_BYTES."""

    def __init__(self, file: gzip.GzipFile, name: str, which: str) -> None:
        self._file, self._name, self._which = file, name, which

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if self._file.tell() > MAX_BYTES:
            raise InvalidInput.of(self._which, f"{self._name} unpacks to more than {MAX_BYTES >> 30} GiB")
        try:
            return self._file.readinto(buffer)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InvalidInput.of(self._which, f"{self._name} is cut off or damaged: {error}") from None
