"""A file that others replace while we run: what it holds, and whether that changed since the last look."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from time import time_ns

SETTLE_SECONDS = 2.0
"""The coarsest clock of a file system in use: within one of its ticks a file can change without another time."""


class WatchedFile:
    """Looks at identity, size and times of the file; follows links, as Kubernetes swaps them under mounted secrets.

    The change time is among them, which only the kernel sets. Where the file had changed within `SETTLE_SECONDS` before
    it was read, or in the future, the next looks compare its bytes, too.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._seen: tuple[int, ...] | None = None
        self._digest = b""
        self._is_settled = False

    def changed(self) -> bool:
        """Whether it is another file than at the last `read`. False while it can't be looked at: it is probably being
        replaced.
        """
        try:
            stamp = self._stamp()
            if stamp != self._seen or self._is_settled:
                return stamp != self._seen
            self._is_settled = _is_settled(stamp)  # before the bytes: what is written after this look has another time
            return hashlib.sha256(self.path.read_bytes()).digest() != self._digest
        except OSError:
            return False

    def read(self) -> bytes:
        """Raises OSError."""
        stamp = self._stamp()  # before the bytes: a change in between is seen as one by the next look
        self._is_settled = _is_settled(stamp)
        data = self.path.read_bytes()
        self._seen, self._digest = stamp, hashlib.sha256(data).digest()
        return data

    def _stamp(self) -> tuple[int, ...]:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _is_settled(stamp: tuple[int, ...]) -> bool:
    return stamp[-1] <= time_ns() - SETTLE_SECONDS * 1e9
