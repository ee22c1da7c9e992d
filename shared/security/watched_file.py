"""A file that others replace while we run: what it holds, and whether that changed since the last look."""

from __future__ import annotations

import os
from pathlib import Path


class WatchedFile:
    """Looks at identity, size and time of the file, not at its bytes; follows links, as Kubernetes swaps them under mounted secrets."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._seen: tuple[int, int, int, int] | None = None

    def changed(self) -> bool:
        """Whether it is another file than at the last `read`. False while it can't be looked at: it is probably being replaced."""
        try:
            return self._stamp() != self._seen
        except OSError:
            return False

    def read(self) -> bytes:
        """Raises OSError."""
        stamp = self._stamp()  # before the bytes: a change in between is seen as one by the next look
        data = self.path.read_bytes()
        self._seen = stamp
        return data

    def _stamp(self) -> tuple[int, int, int, int]:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
