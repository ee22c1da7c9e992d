"""Rows of Python values: DataFrames, tables, mappings of columns, and iterables of examples or mappings."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, MappingView, Sequence, Set, Sized
from typing import Any

from shared.errors import InvalidInput
from shared.values.example import Example
from shared.violations import MAX_ITEMS, items_of
from softprompt.data.examples import is_list
from softprompt.data.problems import Unusable
from softprompt.data.rows import Row, Rows
from softprompt.data.values import fields_of, shown, with_short_floats
from softprompt.types.type_names import type_name

_LAZY = (("collect_schema", "collect"), ("read_next_batch", "read_all"), ("get_fragments", "to_table"))
"""A method by which a lazy frame of polars, a reader or a dataset of pyarrow is known, and the one that reads it."""


def python_rows(source: Any, which: str, with_index: bool = True) -> Rows:
    """The rows of a value. Knows pandas, polars and pyarrow by their methods, without imports. A named index of pandas
    is a column if `with_index` is set and no column has its name. Raises InvalidInput.
    """
    if isinstance(source, Example):
        raise InvalidInput.of(which, "a list of examples is expected, not one example: put it into a list")
    if isinstance(source, Mapping):
        return Rows(_items(_of_columns(source, which), which), format="columns", has_columns=True)
    if hasattr(source, "itertuples") and hasattr(source, "columns"):  # pandas
        if with_index:
            source = _with_index(source, which)
        rows = source.itertuples(index=False, name=None)
        return Rows(_items(_of_frame(source, rows), which), format="DataFrame", has_columns=True)
    if hasattr(source, "iter_rows") and hasattr(source, "columns"):  # polars
        return Rows(_items(_of_frame(source, source.iter_rows()), which), format="DataFrame", has_columns=True)
    for sign, method in _LAZY:
        if hasattr(source, sign) and hasattr(source, method):
            raise InvalidInput.of(which, f"has not been read yet: call its {method}() first")
    if hasattr(source, "to_pylist") and hasattr(source, "column_names"):  # a table or a batch of pyarrow
        names = list(source.column_names)
        if len(set(names)) < len(names):  # its rows would have the last one alone
            raise InvalidInput.of(which, f"names a column twice: {', '.join(names)}")
        types = dict(zip(names, source.schema.types, strict=True))
        batches = source.to_batches() if hasattr(source, "to_batches") else [source]
        rows = (row for batch in batches for row in batch.to_pylist())
        return Rows(_items(with_short_floats(rows, types), which), format="Arrow table")
    if hasattr(source, "to_pylist"):  # an array of pyarrow
        source = source.to_pylist()
    if hasattr(source, "readline"):
        raise InvalidInput.of(which, "is an open file: give its path, or its rows (such as a csv.DictReader of it)")
    if isinstance(source, bytes | bytearray | memoryview) or not isinstance(source, Iterable):
        advice = "; collect it first" if hasattr(source, "__aiter__") else ""
        expected = "examples are expected (a path, a DataFrame, or an iterable of examples or mappings)"
        raise InvalidInput.of(which, f"{expected}, not {type_name(source)}{advice}")
    return Rows(_items(source, which))


def _items(source: Iterable[Any], which: str) -> Generator[Row]:
    for number, item in enumerate(items_of(source, which, "the examples' iterator"), 1):
        yield Row(number, _fields(item))


def _fields(item: Any) -> Mapping[str, Any] | Unusable:
    try:
        fields = _of_example(item) if isinstance(item, Example) else fields_of(item)
    except Unusable as error:
        return error
    except Exception as error:  # a caller's object may raise anything
        return Unusable(f"can't be read: {type(error).__name__}: {error}", kind="mapping")
    if fields is None:
        reason = f"an Example or a mapping is expected, not {type_name(item)}{_advice(item)}"
        return Unusable(reason, kind=f"item type {type(item).__name__}")
    keys: list[object] = list(fields)
    if strange := [key for key in keys if not isinstance(key, str)]:
        return Unusable(f"its keys must be text, not {shown(strange[0])}", kind="key type")
    return fields


def _advice(item: Any) -> str:
    if not is_list(item):
        return ""
    is_conversation = len(item) > 0 and all(isinstance(turn, Mapping) for turn in item)
    return (
        '; a conversation is {"messages": [...]}' if is_conversation else "; name its parts: Example(text, label=label)"
    )


def _of_example(item: Example) -> dict[str, Any]:
    pairs = {"input": item.input, "output": item.output, "label": item.label}
    fields = {name: value for name, value in pairs.items() if value is not None and not (item.messages and value == "")}
    return fields | ({"messages": item.messages} if item.messages else {})


def _with_index(frame: Any, which: str) -> Any:
    """The frame with its named index levels as columns, except those named like a column. Raises InvalidInput."""
    names = [None if name is None else str(name) for name in frame.index.names]  # pandas takes a number for a position
    levels = [name for name in names if name is not None and name not in set(map(str, frame.columns))]
    if twice := next((name for name in levels if levels.count(name) > 1), ""):
        raise InvalidInput.of(which, f"two levels of the index are called {shown(twice)}")
    return frame.set_axis(frame.index.set_names(names)).reset_index(level=levels) if levels else frame


def _of_frame(frame: Any, rows: Iterable[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    return with_short_floats(_named(frame.columns, rows), dict(zip(map(str, frame.columns), frame.dtypes, strict=True)))


def _named(columns: Iterable[Any], rows: Iterable[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    names = [str(name) for name in columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two columns are called {twice!r}")
    for row in rows:
        yield dict(zip(names, row, strict=True))


def _of_columns(source: Mapping[Any, Any], which: str) -> Iterator[dict[str, Any]]:
    columns: dict[str, list[Any]] = {}
    keys = ", ".join(shown(key) for key in list(source)[:6])
    for name, values in source.items():
        is_column = isinstance(values, Iterable) and isinstance(values, Sized)
        if isinstance(values, str | bytes | Mapping) or not is_column:
            advice = "put one example into a list, or name one of several parts"
            raise InvalidInput.of(which, f"a list of examples is expected, not a mapping of {keys}: {advice}")
        if isinstance(values, Set) and not isinstance(values, MappingView):
            raise InvalidInput.of(which, f"its column {name!r} is a set, which has no order: give a list")
        if len(values) > MAX_ITEMS:
            raise InvalidInput.of(which, f"its column {name!r} has more than {MAX_ITEMS} values")
        columns[str(name)] = list(values)
        if columns[str(name)] and isinstance(columns[str(name)][0], Mapping):
            reason = "a list of examples is expected, not a mapping of lists of examples"
            raise InvalidInput.of(which, f"{reason}: choose one of {keys}")
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{name!r} {len(values)}" for name, values in columns.items())
        raise InvalidInput.of(which, f"its columns have different lengths: {lengths}")
    return _named(columns, zip(*columns.values(), strict=True))
