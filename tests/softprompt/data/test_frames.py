"""Frames and tables of pandas, polars and pyarrow are read like files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from pyarrow import dataset, parquet

from shared.errors import InvalidInput
from softprompt import Data
from softprompt.data.inputs import inputs_of
from softprompt.data.prepare import prepare
from tests.softprompt.data.example_files import examples_of


def test_frames_and_tables_are_read() -> None:
    wanted = [{"input": "a", "label": "1"}, {"input": "b", "label": "0"}]
    frame = pd.DataFrame({"text": ["a", "b"], "label": [1, 0]}, index=[7, 3])
    columns = {"text": ["a", "b"], "label": np.array([1, 0])}
    decimals = pd.DataFrame({"text": ["a", "b"], "label": np.array([0.1, 1e6], np.float32)})
    for source in (decimals, pyarrow.Table.from_pandas(decimals)):
        assert [row["label"] for row in examples_of(prepare(source))] == ["0.1", "1000000.0"]
    table = pyarrow.table({"text": ["a", "b"], "label": [1, 0]})
    for lazy, method in ((table.to_reader(), "read_all"), (dataset.dataset(table), "to_table")):
        with pytest.raises(InvalidInput, match=rf"has not been read yet: call its {method}\(\) first"):
            prepare(lazy)
    for source in (
        frame,
        table,
        table.to_batches()[0],
        pyarrow.array(table.to_pylist()),
        frame.set_index("text"),
        frame.set_index("text", drop=False),
        frame.set_index(["text", "label"]),
        frame.set_index(["label", "text"], drop=False),
        columns,
        iter(frame.to_dict("records")),
    ):
        assert examples_of(prepare(Data(source))) == wanted
    with pytest.raises(InvalidInput, match=r"dataset\[1\]\.label: is missing"):
        prepare(pd.DataFrame({"text": ["a", "b"], "label": ["x", None]}))
    with pytest.raises(InvalidInput, match="'id' is not used"):
        prepare(frame.rename_axis("id"))
    assert list(inputs_of(frame[["text"]].rename_axis("id"))) == ["a", "b"]
    with pytest.raises(InvalidInput, match="dataset: two levels of the index are called 'id'"):
        prepare(frame.set_index([frame.index, frame.index]).rename_axis(["id", "id"]))
    numbered = prepare(Data(frame.set_index("text").rename_axis(5), input="5", label="label"))
    assert [row["input"] for row in examples_of(numbered)] == ["a", "b"]
    with pytest.raises(InvalidInput, match="two columns are called 'text'"):
        prepare(pd.DataFrame([["a", "b"]], columns=["text", "text"]))
    with pytest.raises(InvalidInput, match="different lengths"):
        prepare({"text": ["a"], "label": []})  # type: ignore[dict-item]


def test_frames_of_polars_are_read() -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"text": ["a", "b"], "label": [1, 0]})
    assert examples_of(prepare(frame)) == [{"input": "a", "label": "1"}, {"input": "b", "label": "0"}]
    with pytest.raises(InvalidInput, match=r"call its collect\(\) first"):
        prepare(frame.lazy())


def test_a_table_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    table = pyarrow.table([["a"], ["b"], ["c"]], names=["input", "output", "output"])
    parquet.write_table(table, tmp_path / "twice.parquet")
    for source in (table, tmp_path / "twice.parquet"):
        with pytest.raises(InvalidInput, match="names a column twice: input, output, output"):
            prepare(source)
