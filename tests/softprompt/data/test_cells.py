"""Cells of text files: quotes, and conversations as JSON or as pandas writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from shared.errors import InvalidInput
from softprompt import Data
from softprompt.data.checking import check
from softprompt.data.inputs import input_columns, input_of
from softprompt.data.prepare import prepare
from softprompt.data.problems import UnusableData
from tests.softprompt.data.example_files import ANSWER, QUESTION, checked, examples_of, written


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_quotes_may_begin_after_spaces(delimiter: str, tmp_path: Path) -> None:
    header, plain = delimiter.join(("input", ' "label"')), delimiter.join(("hello", " positive"))
    quoted = delimiter.join((f'"one{delimiter} two"', '  "negative"'))
    text = delimiter.join((f'"say{delimiter} ""so"""', "negative"))
    path = written(tmp_path / "a.csv", "\n".join([header, plain, quoted, text, '"two', f'lines{delimiter} ""x"""']))
    path.write_text(path.read_text() + f'{delimiter}"positive"\n')
    assert [tuple(example.values()) for example in examples_of(prepare(path))] == [
        ("hello", "positive"),
        (f"one{delimiter} two", "negative"),
        (f'say{delimiter} "so"', "negative"),
        (f'two\nlines{delimiter} "x"', "positive"),
    ]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_quotes_after_spaces_are_read_in_the_first_cell_and_in_a_row_of_several_lines(
    delimiter: str, tmp_path: Path
) -> None:
    rows = [("input", "output"), (f' "one{delimiter} two"', "a"), ('"two\nlines"', ' "b"'), (' "three"', '"c\nd"')]
    path = written(tmp_path / "a.csv", "\n".join(map(delimiter.join, rows)))
    assert [tuple(example.values()) for example in examples_of(prepare(path))] == [
        (f"one{delimiter} two", "a"),
        ("two\nlines", "b"),
        ("three", "c\nd"),
    ]
    path = written(tmp_path / "a.csv", f'input{delimiter}output\nhello{delimiter} "two\nlines{delimiter} more"\n')
    with pytest.raises(UnusableData, match=r"line 2: has a quote .* after a space that is not closed on the same line"):
        prepare(path)


@pytest.mark.parametrize("write", [json.dumps, str], ids=["JSON", "Python"])
def test_conversations_in_cells_are_read_as_json_and_as_pandas_writes_them(
    write: Callable[[object], str], tmp_path: Path
) -> None:
    wanted = [{"messages": [QUESTION, ANSWER]}]
    chat, trl = pd.DataFrame({"messages": [write([QUESTION, ANSWER])]}), tmp_path / "trl.csv"
    chat.to_csv(tmp_path / "a.csv", index=False)
    assert examples_of(prepare(tmp_path / "a.csv")) == wanted
    pd.DataFrame({"prompt": [write([QUESTION])], "completion": [write([ANSWER])]}).to_csv(trl, index=False)
    assert examples_of(prepare(trl)) == wanted
    row = pd.read_csv(trl).to_dict("records")[0]
    assert input_of(row, input_columns(list(row))) == [QUESTION]
    label = written(tmp_path / "label.jsonl", json.dumps({"input": write([QUESTION]), "label": "x"}) + "\n")
    assert examples_of(prepare(label)) == [{"input": write([QUESTION]), "label": "x"}], "a text with a label stays one"


@pytest.mark.parametrize("write", [json.dumps, str, list], ids=["JSON", "Python", "list"])
def test_a_conversation_in_a_column_of_any_name_is_asked_as_it_is_learned(write: Callable[[object], Any]) -> None:
    """Learned with `--messages dialog`, asked with `--input dialog`."""
    row = {"id": 1, "dialog": write([QUESTION, ANSWER])}
    assert examples_of(prepare(Data([row], messages="dialog", drop_extra=True))) == [{"messages": [QUESTION, ANSWER]}]
    assert input_of(row, input_columns(list(row), "dialog")) == [QUESTION]
    labelled = {"text": str([QUESTION]), "label": "x"}
    assert input_of(labelled, input_columns(list(labelled))) == labelled["text"]


@pytest.mark.parametrize("columns", [("messages",), ("prompt", "completion")])
def test_arrays_of_turns_that_pandas_wrote_are_refused_in_a_sentence(columns: tuple[str, ...], tmp_path: Path) -> None:
    cell = str(np.array([QUESTION, ANSWER], dtype=object))  # without commas
    pd.DataFrame({name: [cell] * 3 for name in columns}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UnusableData, match=r"this looks like a Python value: write it with json\.dumps") as refused:
        prepare(tmp_path / "a.csv")
    assert len(refused.value.violations) == 1


def test_a_turn_may_say_the_same_under_both_names(tmp_path: Path) -> None:
    both = {"role": "user", "from": "human", "content": "a", "value": "a"}
    assert examples_of(prepare([{"messages": [both, ANSWER]}])) == [
        {"messages": [{"role": "user", "content": "a"}, ANSWER]}
    ]
    for name, other in (("from", "gpt"), ("value", "b")):
        with pytest.raises(InvalidInput, match=f"has '{name}' beside role and content"):
            prepare([{"messages": [{**both, name: other}, ANSWER]}])


@pytest.mark.parametrize("name", ["a.csv", "a.xlsx"])
def test_a_column_that_is_named_twice_is_one_problem(tmp_path: Path, name: str) -> None:
    rows = [("input", "input", "label"), *([("a", "b", "c")] * 9)]
    if name == "a.xlsx":
        found = checked(tmp_path / name, rows, lambda book: None)
    else:
        (tmp_path / name).write_text("\n".join(",".join(map(str, row)) for row in rows))
        found = check(Data(str(tmp_path / name)))
    assert ["names a column twice" in problem.reason for problem in found.problems] == [True]
