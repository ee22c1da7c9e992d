"""Whatever a Python caller hands over is read, or refused as InvalidInput with its place; nothing raises a TypeError
from inside.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidInput
from softprompt import Data, Example, Message
from softprompt.data.prepare import prepare
from softprompt.data.problems import UnusableData
from tests.softprompt.data.example_files import examples_of


class Label(str, enum.Enum):  # noqa: UP042 (the kind whose str() is its name)
    GOOD = "good"


class ZeroDimensional:
    """A scalar of torch, by the members that are read."""

    __module__ = "torch"
    ndim = 0

    def __init__(self, value: object, dtype: str = "torch.int64") -> None:
        self._value, self.dtype = value, dtype

    def __repr__(self) -> str:
        return f"tensor({self._value})"

    def item(self) -> object:
        return self._value


SCALARS: list[tuple[Any, str]] = [
    (np.str_("a"), "a"),
    (np.int64(3), "3"),
    (np.float32(0.1), "0.1"),
    (np.bool_(True), "true"),
    (np.array("b"), "b"),
    (ZeroDimensional(3), "3"),
    (ZeroDimensional(float(np.float32(0.1)), "torch.float32"), "0.1"),
    (1.5, "1.5"),
    (False, "false"),
    (Label.GOOD, "good"),
    (decimal.Decimal("1.10"), "1.10"),
    (datetime.date(2026, 1, 2), "2026-01-02"),
    (pd.Timestamp("2026-01-02"), "2026-01-02T00:00:00"),
    ("\ud83d\ude00", "\U0001f600"),
    (np.datetime64("2026-01-02T03:04:05.000000000"), "2026-01-02T03:04:05"),
]


@pytest.mark.parametrize(("value", "text"), SCALARS, ids=repr)
def test_scalars_become_text(value: Any, text: str) -> None:
    assert examples_of(prepare([{"input": "a", "output": value}])) == [{"input": "a", "output": text}]


Pair = collections.namedtuple("Pair", ["input", "label"])


@dataclasses.dataclass
class Record:
    input: str
    label: str


class Model:
    """A model of pydantic, by the member that is read."""

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def model_dump(self) -> dict[str, object]:
        return self._fields


@pytest.mark.parametrize("kind", [Pair, Record, Model], ids=lambda kind: kind.__name__)
def test_objects_with_named_fields_are_examples_and_turns(kind: Any) -> None:
    assert examples_of(prepare([kind(input="a", label="b")])) == [{"input": "a", "label": "b"}]
    with pytest.raises(InvalidInput, match=r"messages\[0\]\.role: must be one of system, user, assistant"):
        prepare([{"messages": [kind(input="a", label="b")] * 2}])


def test_rows_of_a_database_are_examples() -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.row_factory = sqlite3.Row
        rows = database.execute("select 'a' as input, 'b' as label").fetchall()
    assert examples_of(prepare(rows)) == [{"input": "a", "label": "b"}]


def test_arrays_in_conversations_are_lists() -> None:
    """pandas reads the lists of a Parquet file as arrays."""
    question, answer = (
        {"role": "user", "content": "a", "tool_calls": np.array([])},
        {"role": "assistant", "content": "b"},
    )
    rows = [{"messages": np.array([question, answer], dtype=object)}]
    assert examples_of(prepare(rows)) == [{"messages": [{"role": "user", "content": "a"}, answer]}]
    with pytest.raises(InvalidInput, match=r"messages\[1\]\.weight: must be 0 or 1"):
        prepare([{"messages": [question, {**answer, "weight": np.array([1, 0])}]}])


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Raising:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no")


class Meta(ZeroDimensional):
    """A tensor of the device "meta"."""

    __module__ = "torch"

    def item(self) -> object:
        raise RuntimeError("no value")


class BrokenModel:
    def model_dump(self) -> dict[str, object]:
        raise RuntimeError("boom")


UNUSABLE: list[tuple[Any, str]] = [
    (None, "is missing"),
    (np.datetime64("NaT"), "is missing"),
    (np.timedelta64(5, "ns"), "must be text"),
    (datetime.timedelta(1), "not a value of type timedelta; write it as text first"),
    (float("nan"), "is missing"),
    (np.float64("nan"), "is missing"),
    (pd.NA, "is missing"),
    (pd.NaT, "is missing"),
    (float("inf"), "is infinite"),
    (decimal.Decimal("-Infinity"), "is infinite"),
    (b"bytes", "not bytes; decode it first"),
    ({"a": 1}, "not an object; write it as text first"),
    ([1], "not a list"),
    ("half \ud83d", "half a surrogate pair at character 6"),
    (10**5000, "too many digits"),
    (np.ma.masked, "of type MaskedConstant"),
    (Meta(1), "of type Meta"),
    (object(), "of type object"),
    (Hostile(), "of type Hostile"),
    (np.array([1, 2]), "of type ndarray"),
    ("", "is empty"),
    ("\u200b \ufeff", "is empty"),
]


@pytest.mark.parametrize(("value", "reason"), UNUSABLE, ids=range(len(UNUSABLE)))
def test_other_values_are_refused_by_their_place(value: Any, reason: str) -> None:
    good = Example("a", output="b")
    places: list[dict[str, Any]] = [{"input": "a", "output": value}, {"input": value, "output": "a"}]
    for bad in places:
        with pytest.raises(InvalidInput) as refused:
            prepare([good, bad])
        assert reason in str(refused.value)
        assert refused.value.violations[0].field.startswith("dataset[1].")


ITEMS: list[tuple[Any, str]] = [
    (5, "not a number"),
    ("text", "not text"),
    (("a", "b"), "not a tuple; name its parts: Example(text, label=label)"),
    ([{"role": "user", "content": "a"}], 'not a list; a conversation is {"messages": [...]}'),
    ({1: "a"}, "its keys must be text, not 1"),
    ({}, "has nothing"),
    ({"input": Raising(), "output": "a"}, "can't be read: RuntimeError: no"),
    (Example("a"), "needs an input and an output"),
    (Example(input=3, output=b"x"), "not bytes"),  # type: ignore[arg-type]
    (Example("a", "b", "c"), "say which is the"),
    (Example(messages=(Message("user", None),)), "messages[0].content: is missing"),  # type: ignore[arg-type]
    (Example(messages=np.array([1, 2])), "can't be read"),  # type: ignore[arg-type]
    (Example(messages=5), "must be a list of turns, not a number"),  # type: ignore[arg-type]
    (BrokenModel(), "can't be read: RuntimeError: boom"),
    ({"messages": [BrokenModel()] * 2}, "messages[0]: can't be read: RuntimeError: boom"),
    ({"messages": [5, 6]}, "messages[0]: must be an object of role and content"),
    ({"messages": [{"role": None, "content": "x"}, {"role": "assistant", "content": "y"}]}, "must be one of system"),
]


@pytest.mark.parametrize(("item", "reason"), ITEMS, ids=range(len(ITEMS)))
def test_items_that_are_no_examples_are_refused_by_their_index(item: Any, reason: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        prepare([Example("a", output="b"), item])
    assert reason in str(refused.value)
    assert refused.value.violations[0].field.startswith("dataset[1]")


@pytest.mark.parametrize(
    "source", [5, None, b"x", print, {"a": 1}, {"input": "a", "output": "b"}, Example("a", output="b"), [], {}]
)
def test_what_has_no_examples_is_refused(source: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        prepare(Data(source))
    assert refused.value.violations[0].field == "dataset"


def test_a_generator_that_raises_is_named_with_the_place() -> None:
    def failing() -> Iterator[dict[str, str]]:
        yield {"input": "a", "output": "b"}
        raise KeyError("gone")

    with pytest.raises(InvalidInput, match=r"dataset\[1\]: the examples' iterator raised KeyError: 'gone'") as refused:
        prepare(failing())
    assert isinstance(refused.value.__cause__, KeyError)


@pytest.mark.parametrize("value", [({"a": 1},), np.array([1, 2]), b"x"], ids=["tuple", "array", "bytes"])
def test_a_column_that_is_no_text_is_not_suggested(value: Any) -> None:
    with pytest.raises(UnusableData) as refused:
        prepare([{"notes": "a b c", "parts": value, "mood": "good", "rest": value}])
    assert refused.value.fix == {"--input": "notes", "--label": "mood", "--drop-extra": ""}


def test_a_label_in_an_error_has_a_limit() -> None:
    label = "a" * 1_000_000
    with pytest.raises(InvalidInput) as refused:
        prepare(Data([{"input": "a", "label": f"{label}\u200bb"}]), labels=[f"{label}b", "c"])
    assert len(str(refused.value)) < 1000


def test_a_set_is_no_column() -> None:
    with pytest.raises(InvalidInput, match="its column 'input' is a set, which has no order: give a list"):
        prepare({"input": {"a", "b"}, "label": ["x", "y"]})  # type: ignore[dict-item]
    columns: Any = {"input": {"a": 1, "b": 2}.keys(), "label": ["x", "y"]}
    assert [row["input"] for row in examples_of(prepare(columns))] == ["a", "b"]


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.binary(max_size=4)
    | st.text(st.characters(), max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "input", "output", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["input", "output", "label", "messages", "system", "prompt"]), JUNK, max_size=4
        ),
        max_size=3,
    )
)
def test_anything_is_read_or_refused(rows: list[dict[str, Any]]) -> None:
    try:
        prepared = prepare(rows)
    except InvalidInput as error:
        assert all(violation.field.startswith("dataset") for violation in error.violations)  # noqa: PT017 (either outcome is fine)
    else:
        assert len(examples_of(prepared)) == prepared.num_examples


@pytest.mark.parametrize("column", [pd.NA, np.array(["a", "b"]), pd.Series(["a"]), 5, b"a"])
def test_names_of_columns_are_text(column: Any) -> None:
    with pytest.raises(InvalidInput, match="dataset: output must be text"):
        prepare(Data([{"input": "a", "output": "b"}], output=column))


def test_a_source_that_raises_is_refused() -> None:
    with pytest.raises(InvalidInput, match="dataset: can't be read: RuntimeError: no"):
        prepare(Raising())


def test_an_open_file_is_no_list_of_examples(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("input,label\na,b\n")
    with (tmp_path / "a.csv").open() as file, pytest.raises(InvalidInput, match="is an open file: give its path"):
        prepare(file)  # type: ignore[arg-type]


def test_a_path_may_be_bytes(tmp_path: Path) -> None:
    class Entry:
        def __fspath__(self) -> bytes:
            return bytes(tmp_path / "a.csv")

    (tmp_path / "a.csv").write_text("input,label\na,b\n")
    assert examples_of(prepare(Entry())) == [{"input": "a", "label": "b"}]  # type: ignore[arg-type]
