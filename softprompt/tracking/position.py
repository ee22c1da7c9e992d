"""The number of the last written event, in a small file beside the curves."""

from __future__ import annotations

import os
from pathlib import Path


class PositionFile:
    """Read once; replaced atomically with each event."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.number = int(path.read_text())
        except (FileNotFoundError, ValueError):
            self.number = 0

    def save(self, number: int) -> None:
        """Replace the number."""
        self.number = number
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        temporary.write_text(str(number))
        os.replace(temporary, self._path)
