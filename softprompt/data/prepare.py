"""Preparation of a caller's data for an upload: a report of the changes, and one error for all that is unusable."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from shared.errors import InvalidInput
from shared.location import Location
from shared.violations import items_of, readable
from softprompt.data.examples import ExampleReader, line_of
from softprompt.data.files import file_rows
from softprompt.data.layout import NotUnderstood
from softprompt.data.problems import Problems, Unusable
from softprompt.data.python_rows import python_rows
from softprompt.data.rows import MAX_BYTES, Row, Rows
from softprompt.data.values import shown, text_of
from softprompt.types.data import DATASET, Data, Examples, PreparedData
from softprompt.types.type_names import type_name

_SAMPLE_CELLS = 6


def prepare(
    data: str | os.PathLike[str] | Examples | Data | PreparedData, labels: Sequence[str] = (), which: str = DATASET
) -> PreparedData:
    """Read all of the data, which may take seconds: call it in a thread. Raises UnusableData with every kind of error,
    NotFound, or InvalidInput, whose field begins with `which`.
    """
    if isinstance(data, PreparedData):
        return data
    data = data if isinstance(data, Data) else Data(data)
    source = data.source
    for name in ("input", "output", "label", "messages", "encoding"):
        if not isinstance(value := getattr(data, name), str):
            raise InvalidInput.of(which, f"{name} must be text, not {type_name(value)}")
    with readable(which):
        rows = file_rows(source, data, which) if isinstance(source, str | os.PathLike) else python_rows(source, which)
    return _Preparation(rows, data, labels, which).run()


def checked_labels(labels: Any, field: str = "labels") -> tuple[str, ...]:
    """A label set as texts. Raises InvalidInput for a value that is not a list of different scalars."""
    if isinstance(labels, str | bytes | Mapping) or not isinstance(labels, Iterable):
        raise InvalidInput.of(field, f"a list of labels is expected, not {type_name(labels)}")
    found: dict[str, None] = {}
    for index, label in enumerate(items_of(labels, field)):
        try:
            text = text_of(label, "")
        except Unusable as error:
            raise InvalidInput.of(f"{field}[{index}]", error.reason) from None
        if text in found:
            raise InvalidInput.of(f"{field}[{index}]", f"{shown(text)} is repeated")
        found[text] = None
    return tuple(found)


class _Places(Sequence[Location]):
    """Places of the lines, computed on access."""

    def __init__(self, rows: Rows, numbers: array[int]) -> None:
        self._rows, self._numbers = rows, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        return self._rows.place(self._numbers[index])


class _Preparation:
    def __init__(self, rows: Rows, data: Data, labels: Sequence[str], which: str) -> None:
        self._rows, self._data, self._which = rows, data, which
        self._reader = ExampleReader(data, labels)
        self._problems = Problems(rows.name, which)
        self._numbers: array[int] = array("Q")
        self._content = bytearray()
        self._is_verbatim = rows.verbatim is not None

    def run(self) -> PreparedData:
        with closing(self._rows.items):
            for row in self._rows.items:
                try:
                    self._add(row)
                except Unusable as error:
                    self._add_problem(row, error)
                    if self._problems.are_too_many or (isinstance(error, NotUnderstood) and self._rows.has_columns):
                        break
        self._check()
        verbatim = self._rows.verbatim if self._is_verbatim else None
        return PreparedData(
            verbatim or bytes(self._content),
            len(self._numbers),
            self._rows.name,
            self._rows.format,
            (*self._rows.report, *self._reader.report()),
            None if verbatim else _Places(self._rows, self._numbers),
            self._which,
        )

    def _add(self, row: Row) -> None:
        if isinstance(row.fields, Unusable):
            raise row.fields
        try:
            example = self._reader.read(row.fields)
            self._is_verbatim = self._is_verbatim and example == row.fields
        except Unusable:
            raise
        except Exception as error:  # a caller's objects may raise anything
            raise Unusable(f"can't be read: {type(error).__name__}: {error}") from error
        if example is None or self._problems:
            return
        if self._numbers and self._numbers[-1] == row.number:
            self._is_verbatim = False  # two objects on one line
        self._content += line_of(example) + b"\n"
        self._numbers.append(row.number)
        if len(self._content) > MAX_BYTES:
            raise InvalidInput.of(self._which, f"has more than {MAX_BYTES >> 30} GiB of examples: give fewer")

    def _add_problem(self, row: Row, error: Unusable) -> None:
        if isinstance(error, NotUnderstood) and isinstance(row.fields, Mapping):
            cells = list(row.fields.items())[:_SAMPLE_CELLS]
            sample = ", ".join(f"{' '.join(name.split())}={shown(value, 30)}" for name, value in cells)
            if sample:
                sample = sample.encode(errors="backslashreplace").decode()
                error = NotUnderstood(f"{error.reason}; it is {sample}", error.part, error.kind)
        self._problems.add(self._rows.place(row.number), error)

    def _check(self) -> None:
        if self._rows.undecodable:
            self._problems.fix, self._problems.advice = self._rows.encoding_fix, self._rows.encoding_advice
        elif self._problems:
            self._problems.fix = self._reader.layouts.fix
            is_nameless = "--input" in self._problems.fix and not self._data.input
            self._problems.advice = self._rows.advice if is_nameless else self._reader.advice or self._rows.empty_cells
        if self._problems:
            raise self._problems.error()
        if not self._numbers:
            what = f"{self._rows.name!r} has" if self._rows.name else "has"
            why = [", only a header"] if self._rows.has_columns and self._rows.unit == "line" else []
            why = [f"; {sentence}" for sentence in self._reader.report()] or why
            raise InvalidInput.of(self._which, f"{what} no examples{''.join(why)}")
