"""Places in requests and in files of examples, for errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

_NUMBER = r"(?:0|[1-9]\d{0,11})"
_ROW = re.compile(rf"(?:(?P<source>\S.*?) )?(?P<unit>line|row|item) (?P<row>{_NUMBER})(?: (?P<path>\S+))?")
_PATH = re.compile(rf"(?:[^.\[\]\s]+|\[{_NUMBER}\])(?:\.[^.\[\]\s]+|\[{_NUMBER}\])*")
_PART = re.compile(r"\[\d+\]|[^.\[\]]+")


@dataclass(frozen=True)
class Location:
    """A place in a request: the path of a field, with indexes; or in a source of examples: a row and a path in it.

    It stays a value while an error passes through the layers, each of which may know the place better (`Move`), and
    becomes a text once, when the error is shown or sent.
    """

    path: tuple[str | int, ...] = ()
    """Names of fields and, as numbers, indexes from 0."""
    source: str = ""
    """What has the row, such as "dataset"."""
    row: int = 0
    """From 1; 0: in no row."""
    unit: str = "line"
    """What a row is called: "line", "row", "item", or empty for an item of a list, which is shown by its index."""

    @classmethod
    def parse(cls, text: str) -> Location:
        """The place that is written as `text`. A text of another form is one name."""
        if match := _ROW.fullmatch(text):
            found = cls(_parsed(match["path"] or ""), match["source"] or "", int(match["row"]), match["unit"])
        else:
            found = cls(_parsed(text))
        return found if str(found) == text else cls((text,))

    def __truediv__(self, part: str | int) -> Location:
        return replace(self, path=(*self.path, part))

    def below(self, place: Location) -> Location:
        """This path as a path below another place."""
        return replace(place, path=(*place.path, *self.path))

    @property
    def row_text(self) -> str:
        """`line 7`, `row 7` or `[6]`."""
        return f"{self.unit} {self.row}" if self.unit else f"[{self.row - 1}]"

    def __str__(self) -> str:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        if not self.row:
            return path.removeprefix(".")
        if not self.unit:
            return f"{self.source}{self.row_text}{path}"
        return " ".join(part for part in (self.source, self.row_text, path.removeprefix(".")) if part)


Move = Callable[[Location], Location]
"""Gives the same place as a caller of the layer knows it."""


def _parsed(path: str) -> tuple[str | int, ...]:
    if not _PATH.fullmatch(path):
        return (path,) if path else ()
    return tuple(int(part[1:-1]) if part.startswith("[") else part for part in _PART.findall(path))
