"""Inputs for generation, without targets: the columns of a table that hold them, and the input of a row.

Rows are read as training reads them: another input would be answered worse, without an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shared.close_names import did_you_mean
from shared.errors import InvalidInput
from shared.text.blank import is_blank
from shared.values.example import Example
from shared.violations import items_of, readable
from softprompt.data.examples import instructed, is_list, with_system
from softprompt.data.layout import (
    CHAT_NAMES,
    INPUT_NAMES,
    LABEL_NAMES,
    OUTPUT_NAMES,
    Layout,
    instruction_columns,
    only_column,
    plain_name,
)
from softprompt.data.messages import Turns, is_written_turns, turns_of
from softprompt.data.problems import Unusable
from softprompt.data.python_rows import python_rows
from softprompt.data.values import is_missing, text_of
from softprompt.types.generation import Input
from softprompt.types.type_names import type_name


def input_columns(columns: Sequence[str], wanted: str = "") -> Layout:
    """The column `wanted`, else those with well-known names, else the only one. Raises Unusable if none is found."""
    names = [str(name) for name in columns]
    system, output, label = (only_column(names, known) for known in (("system",), OUTPUT_NAMES, LABEL_NAMES))
    if wanted:
        if found := only_column(names, (wanted,)):
            is_chat = plain_name(found) in CHAT_NAMES
            return Layout(messages=found, system=system) if is_chat else Layout(found, output, label)
        raise Unusable(f"has the columns {', '.join(names)} and no {wanted!r}{did_you_mean(wanted, names)}")
    messages, input = only_column(names, CHAT_NAMES), only_column(names, INPUT_NAMES)
    instruction, context = instruction_columns(names) if output or not label else ("", "")
    if not messages and not input and len(names) != 1:
        raise Unusable(f"has the columns {', '.join(names)}: say which one holds the inputs")
    inputs = context or (input if input or messages else names[0])
    return Layout(inputs, output, label, instruction=instruction, messages=messages, system=system)


def input_of(row: Mapping[str, Any], columns: Layout) -> Input:
    """The input in a row: a text, or for a list of turns (in tables as JSON) a conversation without the answer to
    learn. Raises Unusable.
    """

    def cell(name: str) -> Any:
        return row.get(name) if name else None

    is_chat = not is_missing(cell(columns.messages)) or not columns.input
    column = columns.messages if is_chat else columns.input
    value, instruction = row.get(column), cell(columns.instruction)
    if is_chat and not is_missing(value):
        value = with_system(value, cell(columns.system))
    has_target = bool(columns.output or columns.label)
    is_dialog = is_chat or not (has_target or plain_name(column) in INPUT_NAMES)  # learned with `--messages`
    if is_written_turns(value) and (is_written_turns(cell(columns.output)) or is_dialog):
        value = turns_of(value, column)
    if is_list(value) or (is_chat and not is_missing(value)):
        turns = Turns(drop_extra=True).read_input(value, column, with_answer=is_dialog)
        if not turns:
            raise Unusable("is empty", column)
        return turns
    if not is_missing(instruction):
        context = "" if is_missing(value) else text_of(value, column)
        value = instructed(text_of(instruction, columns.instruction), context)
    if is_missing(value) or is_blank(str(value)):
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
            return _of_rows(row.fields for row in python_rows(source, "inputs", with_index=False).items)
    return map(_item, items_of(source, "inputs", most=None))


def _of_rows(rows: Iterable[Mapping[str, Any] | Unusable]) -> Iterator[Input | Unusable]:
    columns: Layout | None = None
    for row in rows:
        if isinstance(row, Unusable):
            yield row
            continue
        if columns is None:
            try:
                columns = input_columns(list(row))
            except Unusable as error:
                raise InvalidInput.of("inputs", error.reason) from None
        yield _usable(row, columns)


def _item(item: Any) -> Input | Unusable:
    if isinstance(item, Example):
        return item.messages[:-1] or item.input
    try:
        if isinstance(item, Mapping):
            return input_of(item, input_columns(list(item)))
        return text_of(item, "") if type(item).__module__ == "numpy" and getattr(item, "ndim", 1) == 0 else item
    except Unusable as error:
        return error
    except Exception as error:  # a caller's mapping may raise anything
        return Unusable(f"can't be read: {type(error).__name__}: {error}")


def _usable(row: Mapping[str, Any], columns: Layout) -> Input | Unusable:
    try:
        return input_of(row, columns)
    except Unusable as error:
        return error
