"""Rows that are written and read again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from softprompt import Data
from softprompt.data.files import file_rows
from softprompt.data.writing import write_rows


@pytest.mark.parametrize("format", ["jsonl", "csv", "xlsx", "parquet"])
def test_half_a_surrogate_pair_is_written_as_the_replacement_character(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{format}"
    row = {"in\ud800": "a\udc00", "pair": "\ud83d\ude00", "list": [{"k\ud800": "b\ud800"}]}
    write_rows(str(path), format, list(row), [row] * 2)
    found, _ = file_rows(path, Data(str(path)), "dataset").items
    nested = [{"k\ufffd": "b\ufffd"}] if format in ("jsonl", "parquet") else '[{"k\ufffd": "b\ufffd"}]'
    assert found.fields == {"in\ufffd": "a\ufffd", "pair": "\U0001f600", "list": nested}


@pytest.mark.parametrize(
    ("format", "infinite"), [("jsonl", None), ("csv", "inf"), ("tsv", "inf"), ("xlsx", "inf"), ("parquet", math.inf)]
)
def test_numbers_that_are_not_finite_are_written(format: str, infinite: object, tmp_path: Path) -> None:
    path = tmp_path / f"a.{format}"
    write_rows(str(path), format, ["a", "b", "c"], [{"a": "x", "b": math.inf, "c": math.nan}])
    (found,) = file_rows(path, Data(str(path)), "dataset").items
    assert found.fields == {"a": "x", "b": infinite, "c": None if format in ("jsonl", "xlsx", "parquet") else ""}


@pytest.mark.parametrize("format", ["jsonl", "csv", "xlsx", "parquet"])
def test_whole_numbers_beyond_a_float_are_written_in_full(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{format}"
    write_rows(str(path), format, ["a", "b"], [{"a": 10**400, "b": "x"}])
    (found,) = file_rows(path, Data(str(path)), "dataset").items
    assert isinstance(found.fields, dict)
    assert (str(found.fields["a"]), found.fields["b"]) == (f"{10**400}", "x")
