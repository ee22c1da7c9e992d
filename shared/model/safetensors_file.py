"""Reads the headers of safetensors files, and explains to the user why a file is not valid.

8 bytes   length of the header, little-endian
header    JSON; each tensor's `data_offsets` are relative to the header's end
data
"""

from __future__ import annotations

import json
from pathlib import Path

ITEM_BYTES = {"F32": 4, "BF16": 2}
"""Bytes of a number, by the name of its dtype: those of prompts and prefixes."""

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 << 20
"""The format's own limit."""
_LFS_POINTER = b"version https://git-lfs"


def complaint(beginning: bytes, size_bytes: int) -> str:
    """Why a file is not valid; empty if its size and header agree. `beginning` contains the whole header."""
    if not size_bytes:
        return "it is empty"
    if beginning.startswith(_LFS_POINTER):
        return "it is the pointer that Git LFS leaves in place of a file; `git lfs pull` gets the file itself"
    length = int.from_bytes(beginning[:_LENGTH_BYTES], "little")
    if length > _MAX_HEADER_BYTES or (
        size_bytes > _LENGTH_BYTES and beginning[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{"
    ):
        return "it does not begin as a safetensors file"
    end = _LENGTH_BYTES + length
    if size_bytes < end:
        return f"it is cut short: {size_bytes} bytes are there, and its header alone has {end}"
    try:
        entries = json.loads(beginning[_LENGTH_BYTES:end])
        wanted = end + max(
            (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "its header can't be read"
    if size_bytes < wanted:
        return f"it is cut short: {size_bytes} of {wanted} bytes are there"
    return f"it has {size_bytes - wanted} bytes too many" if size_bytes > wanted else ""


def header_of(file: Path) -> bytes:
    """The JSON of the header of a file on disk. Raises OSError, or ValueError if it is longer than the file."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        if length > min(_MAX_HEADER_BYTES, file.stat().st_size):
            raise ValueError("the header is longer than the file or the format's limit")
        return opened.read(length)


def complaint_about(file: Path) -> str:
    """`complaint` about a file on disk. Reads only its header. Raises OSError."""
    with file.open("rb") as opened:
        beginning = opened.read(1024)
        length = int.from_bytes(beginning[:_LENGTH_BYTES], "little")
        if length <= _MAX_HEADER_BYTES:
            beginning += opened.read(max(0, _LENGTH_BYTES + length - len(beginning)))
    return complaint(beginning, file.stat().st_size)
