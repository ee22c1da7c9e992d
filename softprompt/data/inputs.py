"""Inputs for generation, without targets: the column of a table that holds them, and the input of a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shared.close_names import did_you_mean
from shared.errors import InvalidInput
from shared.values.example import Example
from shared.violations import items_of, readable
from softprompt.data.layout import CHAT_NAMES, INPUT_NAMES, only_column
from softprompt.data.problems import Unusable
from softprompt.data.python_rows import python_rows
from softprompt.data.values import is_missing, text_of
from softprompt.types.generation import Input
from softprompt.types.type_names import type_name


def input_column(columns: Sequence[str], wanted: str = "") -> str:
    """The column `wanted`, else the one with a well-known name, else the only one. Raises Unusable if none is found."""
    names = [str(name) for name in columns]
    if wanted:
        if found := only_column(names, (wanted,)):
            return found
        raise Unusable(f"has the columns {', '.join(names)} and no {wanted!r}{did_you_mean(wanted, names)}")
    found = only_column(names, INPUT_NAMES) or only_column(names, CHAT_NAMES)
    if not found and len(names) == 1:
        return names[0]
    if not found:
        raise Unusable(f"has the columns {', '.join(names)}: say which one holds the inputs")
    return found


def input_of(row: Mapping[str, Any], column: str) -> Input:
    """The input in a row: a text, or for a list of turns (in tables as JSON) a conversation. Raises Unusable."""
    value: Any = row.get(column)
    if isinstance(value, str) and column.strip().lower() in CHAT_NAMES:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Unusable("must be a list of turns, in a table as JSON", column) from None
    if value is not None and hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if isinstance(value, list | tuple) and value:
        return value
    if is_missing(value) or not str(value).strip():
        raise Unusable("is empty", column)
    return text_of(value, column)


def inputs_of(source: Any) -> Iterator[Input | Unusable]:
    """The inputs of a list, a Series, a DataFrame or another table. Items may be mappings or examples with an input.
    Unusable ones are returned, not raised. Raises InvalidInput for a value that holds no inputs.
    """
    if isinstance(source, str | bytes | Mapping | Example) or not isinstance(source, Iterable):
        raise InvalidInput.of("inputs", f"a list of inputs or a table is expected, not {type_name(source)}")
    with readable("inputs"):
        if hasattr(source, "columns") or hasattr(source, "column_names"):
            return _of_rows(row.fields for row in python_rows(source, "inputs").items)
    return map(_item, items_of(source, "inputs", most=None))


def _of_rows(rows: Iterable[Mapping[str, Any] | Unusable]) -> Iterator[Input | Unusable]:
    column = ""
    for row in rows:
        if isinstance(row, Unusable):
            yield row
            continue
        if not column:
            try:
                column = input_column(list(row))
            except Unusable as error:
                raise InvalidInput.of("inputs", error.reason) from None
        try:
            yield input_of(row, column)
        except Unusable as error:
            yield error


def _item(item: Any) -> Input | Unusable:
    if isinstance(item, Example):
        return item.messages or item.input
    try:
        if isinstance(item, Mapping):
            return input_of(item, input_column(list(item)))
        return text_of(item, "") if type(item).__module__ == "numpy" and getattr(item, "ndim", 1) == 0 else item
    except Unusable as error:
        return error
    except Exception as error:  # a caller's mapping may raise anything
        return Unusable(f"can't be read: {type(error).__name__}: {error}")
