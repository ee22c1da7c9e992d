"""JSON lines and JSON documents: an array of objects, objects over several lines, or an object with an array."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from typing import Any

from shared.json_keys import RepeatedKey, unique_keys
from softprompt.data.layout import CHAT_NAMES, INPUT_NAMES, LABEL_NAMES, OUTPUT_NAMES, plain_name
from softprompt.data.problems import Unusable
from softprompt.data.rows import Row, Rows
from softprompt.types.type_names import type_name

_EXAMPLE_NAMES = frozenset(INPUT_NAMES + CHAT_NAMES)
_TARGET_NAMES = frozenset(OUTPUT_NAMES + LABEL_NAMES)
_TURN_KEYS = frozenset(("role", "content", "from", "value", "weight", "name"))
_SPACE = " \t\r\n\ufeff"


def is_json_lines(first: str, second: str) -> bool:
    """Whether the first two lines that are not blank belong to JSON lines and not to a document over several lines."""
    return bool(second) and (_parses(first) or (first.startswith("{") and second.startswith("{") and _parses(second)))


def json_lines(lines: Iterable[str]) -> Generator[Row]:
    """Rows of JSON lines. A line may hold several objects, since `cat` joins files without a final line end."""
    for number, line in enumerate(lines, start=1):
        if line.strip(_SPACE):
            for value in _values(line):
                yield Row(number, _fields(value))


def json_document(text: str, rows: Rows) -> Generator[Row]:
    """Rows of an array, or of objects one after the other. Each has the number of its first line or, where one line
    holds all, its own number; `rows.unit` names the kind.
    """
    position, line, done, count, number = _skip(text, 0), 1, 0, 0, 1
    is_array = text[position : position + 1] == "["
    counts_items = is_array and "\n" not in text.strip()
    rows.unit = "item" if counts_items else "line"
    if is_array:
        position = _skip(text, position + 1)
    while position < len(text) and not (is_array and text[position] == "]"):
        line, count = line + text.count("\n", done, position), count + 1
        done = position
        number = count if counts_items else line
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            if not counts_items and isinstance(error, json.JSONDecodeError):
                number = error.lineno
            yield Row(number, Unusable(f"{_explained(error)}; what follows is not read", kind="json"))
            return
        position = _skip(text, position)
        if not is_array and position >= len(text) and (inner := _unwrapped(value)) is not None:
            rows.unit = "item"
            yield from (Row(number, _fields(item)) for number, item in enumerate(inner, start=1))
            return
        yield Row(number, _fields(value))
        if is_array:
            if text[position : position + 1] == ",":
                position = _skip(text, position + 1)
            elif position < len(text) and text[position] != "]":
                reason = "is not JSON: a comma is missing after this object; what follows is not read"
                yield Row(number, Unusable(reason, kind="json"))
                return
    if is_array and position >= len(text):
        yield Row(number, Unusable("the file ends inside the array: it is cut off", kind="json"))
    elif is_array and text[position + 1 :].strip(_SPACE + "\x00\x1a"):  # old editors end a file with these
        yield Row(number, Unusable("text follows the end of the array: it is not read", kind="json"))


def _values(line: str) -> Iterator[Any]:
    position = _skip(line, 0)
    while position < len(line):
        try:
            value, position = _DECODER.raw_decode(line, position)
        except (ValueError, RecursionError) as error:
            yield Unusable(_explained(error), kind="json")
            return
        yield value
        position = _skip(line, position)


def _fields(value: Any) -> Mapping[str, Any] | Unusable:
    if isinstance(value, Unusable | dict):
        return value
    forms = '{"input": ..., "output": ...} or {"messages": [...]}'
    return Unusable(f"must be an object like {forms}, not {type_name(value)}", kind="json type")


def _unwrapped(value: Any) -> list[Any] | None:
    """The examples in {"data": [...]} or in an object of columns; None for any other value."""
    if not isinstance(value, dict):
        return None
    lists = {key: item for key, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)}
    if any(item[0].keys() <= _TURN_KEYS and item[0].keys() & {"role", "from"} for item in lists.values()):
        return None  # the conversations of one example
    if _has_name(value, _EXAMPLE_NAMES):  # of an example with other lists, or of a remark beside a list of examples
        is_example = _has_name(value, _TARGET_NAMES)
        lists = {} if is_example else {key: item for key, item in lists.items() if _has_name(item[0], _EXAMPLE_NAMES)}
    if lists:
        if len(lists) == 1:
            return next(iter(lists.values()))
        names = ", ".join(map(repr, lists))
        return [Unusable(f"has several lists of examples: {names}; save the one that you need as a separate file")]
    if value.keys() in ({"columns", "data"}, {"columns", "index", "data"}) and _are_rows(value):
        # orient="split" of pandas
        return [dict(zip(value["columns"], cells, strict=True)) for cells in value["data"]]
    columns = list(value.values())
    if len(columns) > 1 and all(map(str.isdecimal, value)) and all(map(_is_named_row, columns)):
        return columns  # orient="index"
    # By row number, as `to_json` of pandas writes a DataFrame. Other names may be those of columns.
    are_numbered = all(isinstance(column, dict) and all(map(str.isdecimal, column)) for column in columns)
    if are_numbered and len(set(map(tuple, columns))) == 1:
        columns = [list(column.values()) for column in columns]
    is_table = len(columns) > 1 and all(isinstance(column, list) for column in columns)
    if is_table and len(set(map(len, columns))) == 1:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return None


def _has_name(value: Mapping[str, Any], names: Collection[str]) -> bool:
    return any(plain_name(key) in names for key in value)


def _is_named_row(value: Any) -> bool:
    """Whether this is a row with named cells; with numbers for names, it is a column of numbered rows."""
    return isinstance(value, dict) and not all(map(str.isdecimal, value))


def _are_rows(table: dict[str, Any]) -> bool:
    """Whether the columns are names and each row of the data has a cell for each."""
    names, data = table["columns"], table["data"]
    is_named = (
        isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    )
    return is_named and isinstance(data, list) and all(isinstance(row, list) and len(row) == len(names) for row in data)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def _parses(line: str) -> bool:
    try:
        _, end = _DECODER.raw_decode(line, _skip(line, 0))
    except (ValueError, RecursionError):
        return False
    return _skip(line, end) == len(line)


def _explained(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        if error.doc.startswith("{'", max(0, error.pos - 1)):
            return "is a Python dictionary and not JSON: write it with json.dumps"
        if error.doc[max(0, error.pos - 1) : error.pos + 1] == "},":  # of a line that was cut out of an array
            return "has a comma after the object: remove it, or put all objects into [ and ]"
        return f"is not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    if "digits" in str(error) and not isinstance(error, RepeatedKey):  # Python's own sentence advises its programmer
        return "has a number with too many digits: write it as text"
    return f"is not JSON: {str(error)[:100]}"


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)
