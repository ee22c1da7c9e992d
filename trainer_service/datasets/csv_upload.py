"""Converts CSV uploads to JSON lines while they arrive, for callers without our client. As strict as JSON lines.

UTF-8, commas, quotes as in RFC 4180; the first line is exactly `input,output` or `input,label`, in either order.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from array import array
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

from shared.errors import InvalidInput
from shared.location import Location
from shared.process.call_pool import CallPool
from shared.text.spaced_quotes import UnclosedQuote, without_spaces
from trainer_service.training.data.places import DATASET

_HEADERS = ({"input", "output"}, {"input", "label"})


class CsvUpload:
    """Converts one upload. `line_of` maps lines in errors from the JSON lines to the CSV."""

    def __init__(self, size_bytes: int, digest: str, max_record_bytes: int) -> None:
        """`size_bytes` and `digest` ("sha256:<hex>") as announced by the sender; 0 and "": not announced."""
        self._size_bytes, self._digest, self._max_record_bytes = size_bytes, digest, max_record_bytes
        csv.field_size_limit(max(csv.field_size_limit(), max_record_bytes))
        self._hash, self._num_bytes = hashlib.sha256(), 0
        self._rest = bytearray()
        """The record whose end has not arrived. `_scanned` of its bytes are scanned; they have `_num_lines` line ends.
        """
        self._scanned, self._num_lines, self._in_quotes = 0, 0, False
        self._line = 1
        """The line on which the next record begins."""
        self._columns: list[str] = []
        self._places = array("Q")

    async def json_lines(self, chunks: AsyncIterator[bytes], pool: CallPool) -> AsyncIterator[bytes]:
        """Yields JSON lines. Raises InvalidInput naming the first wrong line, or a wrong size or digest."""
        async for chunk in chunks:
            if lines := await pool.call(self._converted, chunk):
                yield lines
        if self._size_bytes and self._size_bytes != self._num_bytes:
            raise InvalidInput.of("header.size_bytes", f"announced {self._size_bytes} bytes, {self._num_bytes} arrived")
        if self._digest and self._digest != (found := f"sha256:{self._hash.hexdigest()}"):
            raise InvalidInput.of("header.digest", f"announced {self._digest}, the received bytes have {found}")
        if last := self._converted(b"\n" if self._rest else b"", is_last=True):
            yield last

    def line_of(self, place: Location) -> Location:
        """`dataset line 1 output` of the JSON lines -> `dataset line 2 output` of the CSV."""
        return replace(place, row=self._places[place.row - 1]) if 0 < place.row <= len(self._places) else place

    def _converted(self, chunk: bytes, is_last: bool = False) -> bytes:
        if not is_last:
            self._hash.update(chunk)
            self._num_bytes += len(chunk)
        self._rest += chunk
        return b"".join(self._json_line(record) for record in self._records(is_last))

    def _records(self, is_last: bool) -> Iterator[bytes]:
        """Yields complete records, which end at a line end outside quotes: after an even number of quotes (RFC 4180).

        Scans every byte once, regardless of the chunks' boundaries.
        """
        data, begin = self._rest, 0
        while (end := data.find(b"\n", self._scanned) + 1) > 0:
            self._in_quotes ^= data.count(b'"', self._scanned, end) % 2 == 1
            self._scanned = end
            self._num_lines += 1
            if not self._in_quotes:
                yield bytes(data[begin:end])
                self._line, self._num_lines, begin = self._line + self._num_lines, 0, end
            elif end - begin > self._max_record_bytes:
                break
        self._in_quotes ^= data.count(b'"', self._scanned) % 2 == 1
        self._scanned = len(data) - begin
        del data[:begin]
        if len(data) > self._max_record_bytes or (is_last and data):
            reason = "has a quote that is never closed" if is_last else f"is longer than {self._max_record_bytes} bytes"
            raise InvalidInput.of(Location(source=DATASET, row=self._line), reason)

    def _json_line(self, record: bytes) -> bytes:
        field = Location(source=DATASET, row=self._line)
        cells = _cells(record, field)
        if not cells:
            return b""
        if not self._columns:
            if set(cells) not in _HEADERS or len(cells) != 2:
                raise InvalidInput.of(field, "must be the header: exactly input,output or input,label")
            self._columns = cells
            return b""
        if len(cells) != 2:
            raise InvalidInput.of(field, f"has {len(cells)} cells; the header has 2")
        if cells == self._columns:
            raise InvalidInput.of(field, "repeats the header, as joined files do: remove this line")
        self._places.append(self._line)
        example = dict(sorted(zip(self._columns, cells, strict=True), key=lambda pair: pair[0] != "input"))
        return json.dumps(example, ensure_ascii=False).encode() + b"\n"


def _cells(record: bytes, field: Location) -> list[str]:
    """The cells of a record, none of an empty line. Line breaks in a cell become line feeds. Raises InvalidInput."""
    try:
        # A byte order mark may be on every line, because files may have been joined.
        lines = io.StringIO(record.decode("utf-8-sig"), newline=None).readlines()
    except UnicodeDecodeError as error:
        raise InvalidInput.of(field, f"is not UTF-8 (byte {error.start + 1})") from None
    try:
        rows = [row for row in csv.reader(lines, strict=True) if row]  # a line end may be "\r\r\n"
        cells = rows[0] if rows else []
        if without_spaces(cells, lines) != cells:
            raise UnclosedQuote
    except UnclosedQuote:
        raise InvalidInput.of(field, "has a space before a quoted cell: remove the space") from None
    except csv.Error as error:
        raise InvalidInput.of(field, f"is not CSV: {error}") from None
    if len(rows) > 1:
        reason = "is not CSV: it has a line break outside quotes; put such a cell in quotes and double the quotes in it"
        raise InvalidInput.of(field, reason)
    return cells
