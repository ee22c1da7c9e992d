"""Where examples come from and how to read them, as plain frozen dataclasses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from softprompt.types.common import Message


@dataclass(frozen=True)
class Example:
    """An input with exactly one of `output`, `label`; or `messages`, whose last turn is the assistant's."""

    input: str = ""
    output: str | None = None
    label: str | None = None
    messages: tuple[Message, ...] = ()


Examples = Iterable[Example | Mapping[str, Any]]


@dataclass(frozen=True)
class Data:
    """Examples, and which of their columns to use. Only `source` is needed where the columns have well-known names.

    `input`, `output`, `label` and `messages` name columns (of JSON: keys). Columns that are not used are refused unless `drop_extra`.
    """

    source: str | os.PathLike[str] | Examples | Any
    """A path (CSV, TSV, XLSX, Parquet, JSON, JSON lines; each also with gzip), a DataFrame, a table of pyarrow, a mapping of columns to
    lists, or any iterable of examples or mappings."""
    input: str = ""
    output: str = ""
    label: str = ""
    messages: str = ""
    drop_extra: bool = False
    encoding: str = ""
    """Of a text file. Empty: UTF-8, or what its byte order mark says."""
