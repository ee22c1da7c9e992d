"""Sources of examples and how to read them: plain frozen dataclasses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.values.example import Example as Example

Examples = Iterable[Example | Mapping[str, Any]]


@dataclass(frozen=True)
class Data:
    """Examples and the columns to use. Only `source` is needed if the columns have well-known names (docs/data.md).

    `input`, `output`, `label` and `messages` name columns, or keys of JSON. Unused columns are refused unless
    `drop_extra` is True.
    """

    source: str | os.PathLike[str] | Examples | Any
    """A path (CSV, TSV, XLSX, Parquet, JSON, JSON lines; each may be gzipped), a DataFrame, a table of pyarrow, a
    mapping of columns to lists, or any iterable of examples or mappings.
    """
    input: str = ""
    output: str = ""
    label: str = ""
    messages: str = ""
    drop_extra: bool = False
    encoding: str = ""
    """Encoding of a text file. Empty: the one of its byte order mark, else UTF-8."""
