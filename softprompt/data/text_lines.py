"""Lines of text files: UTF-8, Excel's and PowerShell's UTF-16 and UTF-32 with their marks, or a given encoding."""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, cast

from shared.errors import InvalidInput

_MARK = "\ufeff"
_END = "\x1a"
"""Ctrl-Z, by which programs of DOS mark the end of a text, and fill its last block."""
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 4096
_UNKNOWN_BYTES = re.compile("[\udc80-\udcff]+")
_CONTROLS, _NO_CHARACTERS = frozenset("\t\n\r\x1a"), frozenset(("Cc", "Cn", "Co", "Cs"))
"""Control characters of text files; the categories of other controls, and of what is not assigned to a character."""


class TextLines:
    """Lines without line ends, counted from 1. `undecodable` has (line, byte) of each line's first unknown byte."""

    def __init__(self, file: BinaryIO, encoding: str, which: str) -> None:
        """`encoding` empty: that of the byte order mark, else UTF-8. Raises InvalidInput for an unknown one."""
        self._which = which
        buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file), 1 << 16)
        head = buffered.peek(_SAMPLE_BYTES)[:_SAMPLE_BYTES]
        self.encoding = encoding or _guess(head)
        self.is_binary = b"\0" in head and "16" not in self.encoding and "32" not in self.encoding
        self.undecodable: list[tuple[int, str]] = []
        self.has_end_mark = False
        """Whether the text ended with Ctrl-Z, which is left out."""
        self._num_runs = [0, 0]
        """Runs of up to two unknown bytes, and longer ones."""
        try:
            # newline=None: also the line ends of Windows and of the first Macs
            self._text = io.TextIOWrapper(buffered, self.encoding, errors="surrogateescape", newline=None)
        # an unknown name, one of no text such as base64, or one with a null character
        except (LookupError, ValueError):
            reason = f"{encoding!r} is not a known encoding; examples are cp1252 and utf-16"
            raise InvalidInput.of("encoding", reason) from None
        self.rest = self._lines()
        """An iterator over the remaining lines."""

    def _lines(self) -> Iterator[str]:
        number = 0
        try:
            for line in self._text:
                number += 1
                if line.endswith(_END):  # the last line: every other one ends with a line end
                    self.has_end_mark, line = True, line.rstrip(_END)
                    if not line:
                        return
                line = line.rstrip("\n").removeprefix(_MARK)  # also that of a second file, appended to a first
                if not line.isascii():
                    line = self._checked(line, number)
                yield line
        except (UnicodeError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = f"after line {number}" if number else f"or is not in {self.encoding.upper()}"
            raise InvalidInput.of(self._which, f"is damaged or cut off {reason} ({error})") from None

    @property
    def has_bare_returns(self) -> bool:
        """Whether a line so far ends as those of the first Macs do."""
        found = self._text.newlines
        return "\r" in ((found,) if isinstance(found, str) else found or ())

    @property
    def encoding_name(self) -> str:
        """The encoding as errors name it."""
        return self.encoding.upper().removesuffix("-SIG")

    @property
    def likely_encoding(self) -> str:
        """The encoding of text that is not UTF-8; empty: unknown. Western text has letters of ASCII between others."""
        short, long = self._num_runs
        return "cp1252" if self.undecodable and short > long else ""

    def release(self) -> None:
        """Detach the file without closing it. There are no more lines after that."""
        with suppress(ValueError):  # already released
            self._text.detach()

    def _checked(self, line: str, number: int) -> str:
        try:
            line.encode()
        except UnicodeEncodeError as error:
            byte = ord(line[error.start]) & 0xFF
            self.undecodable.append((number, f"0x{byte:02x} at character {error.start + 1}"))
            for run in _UNKNOWN_BYTES.findall(line):
                self._num_runs[len(run) > 2] += 1
            return line.encode(errors="replace").decode()
        return line


def _guess(head: bytes) -> str:
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if b"\0" not in head:  # a table or JSON in UTF-16 has some ASCII, whose other byte is zero
        return "utf-8"
    sample = head[: len(head) // 2 * 2]
    zeros = sample[::2].count(0), sample[1::2].count(0)
    # UTF-16 without a mark: of ASCII, every other byte is zero, and no other. Programs have zeros everywhere.
    if len(sample) >= 4 and max(zeros) > len(sample) // 5 and min(zeros) * 10 <= max(zeros):
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return next((name for name in ("utf-16-le", "utf-16-be") if _is_text(sample, name)), "utf-8")


def _is_text(sample: bytes, encoding: str) -> bool:
    """Whether bytes are lines of text or JSON in UTF-16. In the other byte order, a line break is not a character."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return False
    return ("\n" in text or text.startswith(("[", "{"))) and all(
        character in _CONTROLS or unicodedata.category(character) not in _NO_CHARACTERS for character in set(text)
    )
