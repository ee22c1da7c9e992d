"""Examples of a stored dataset without their texts in memory: the start of each line, and the file to read it from.

A dataset as Python objects takes about six times its bytes. Here an example takes 16 bytes; its text is read from the
file on access.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import overload

from shared.errors import DamagedBlob
from shared.values.message import Message
from trainer_service.training.spec import Example


class ExampleLines(Sequence[Example]):
    """The examples of a JSON Lines file that was checked when it was stored. Thread-safe.

    The file stays open, so it can be read after it is removed.
    """

    def __init__(self, path: Path, digest: str) -> None:
        """`digest`: SHA-256 of the file, 64 hexadecimal digits. Raises DamagedBlob if the bytes differ, or OSError."""
        self.digest = digest
        self._starts, self._lines = array("q"), array("q")
        sha256, position = hashlib.sha256(), 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                sha256.update(line)
                if not line.isspace():
                    self._starts.append(position)
                    self._lines.append(number)
                position += len(line)
            self._descriptor = os.dup(file.fileno())
        self._starts.append(position)
        weakref.finalize(self, os.close, self._descriptor)
        if sha256.hexdigest() != digest:
            raise DamagedBlob(f"dataset {digest} was changed on disk")

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return Selection(self, range(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self._starts[index]
        return stored_example(os.pread(self._descriptor, self._starts[index + 1] - start, start), self._lines[index])

    def __iter__(self) -> Iterator[Example]:
        """Reads the file from its beginning to its end."""
        with open(os.dup(self._descriptor), "rb") as file:
            for index, number in enumerate(self._lines):
                start = self._starts[index]
                file.seek(start)
                yield stored_example(file.read(self._starts[index + 1] - start), number)


class Selection(Sequence[Example]):
    """The examples of `base` with the given indices."""

    def __init__(self, base: Sequence[Example], indices: Sequence[int]) -> None:
        self.base, self.indices = base, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return Selection(self.base, self.indices[index])
        return self.base[self.indices[index]]


def stored_example(line: bytes, number: int) -> Example:
    """The example of one stored line, not checked again. Blank lines may follow it."""
    fields = json.loads(line.decode("utf-8-sig"))
    messages = tuple(Message(**turn) for turn in fields.pop("messages", ()))
    return Example(**fields, messages=messages, line=number)


def example_line(example: Example) -> bytes:
    """The line that stores an example, the same for the same example."""
    if example.messages:
        line: dict[str, object] = {"messages": [asdict(message) for message in example.messages]}
    elif example.label is not None:
        line = {"input": example.input, "label": example.label}
    else:
        line = {"input": example.input, "output": example.output}
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
