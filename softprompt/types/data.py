"""Sources of examples and how to read them: plain frozen dataclasses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.location import Location
from shared.values.example import Example
from shared.violations import moved

DATASET, VALIDATION_DATASET = "dataset", "validation dataset"
"""What errors call the two."""
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


@dataclass(frozen=True)
class PreparedData:
    """Examples in the form that the services accept. Can be used wherever a dataset can."""

    content: Path | bytes
    """JSON lines: the path of the caller's file if it has this form already, else bytes."""
    num_examples: int
    name: str = ""
    """Name of the file; empty for Python values."""
    format: str = ""
    report: tuple[str, ...] = ()
    """What was changed or dropped, as sentences."""
    places: Sequence[Location] | None = field(default=None, repr=False)
    """The place in the caller's data of each line of `content`; None: the same line."""
    which: str = DATASET

    def named(self, which: str) -> AbstractContextManager[None]:
        """A block in which a service's InvalidInput names places of the caller's data, not lines of `content`."""
        return moved(lambda place: self._place(place) if place.row and place.source == which else place)

    def _place(self, line: Location) -> Location:
        known = self.places[line.row - 1] if self.places is not None and line.row <= len(self.places) else line
        return replace(known, source=self.which, path=line.path)


Dataset = str | os.PathLike[str] | Examples | Data | PreparedData
"""Data as `Data.source` accepts it, a dataset name ("datasets/sha256-..."), or a URI for the trainer."""
