"""A file that may be replaced while the process runs: its content, and whether it has changed since the last read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from time import time_ns

SETTLE_SECONDS = 2.0
"""Longest tick of a file system's clock: within one tick a file can change and keep its times."""


class WatchedFile:
    """Detects changes of a file by its identity, size and times. Follows links, which Kubernetes swaps for secrets.

    The times include the change time, which only the kernel sets. If the file changed less than SETTLE_SECONDS before
    it was read, or has a time in the future, `changed` also compares the bytes.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._seen: tuple[int, ...] | None = None
        self._digest = b""
        self._is_settled = False

    def changed(self) -> bool:
        """Whether the file has changed since the last `read`; False while it is unreadable, as during a replacement."""
        try:
            stamp = self._stamp()
            if stamp != self._seen or self._is_settled:
                return stamp != self._seen
            self._is_settled = _is_settled(stamp)  # before reading: a later write gets another time
            return hashlib.sha256(self.path.read_bytes()).digest() != self._digest
        except OSError:
            return False

    def read(self) -> bytes:
        """Content of the file. Raises OSError."""
        stamp = self._stamp()  # before reading, so that `changed` notices a write in between
        self._is_settled = _is_settled(stamp)
        data = self.path.read_bytes()
        self._seen, self._digest = stamp, hashlib.sha256(data).digest()
        return data

    def _stamp(self) -> tuple[int, ...]:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _is_settled(stamp: tuple[int, ...]) -> bool:
    return stamp[-1] <= time_ns() - SETTLE_SECONDS * 1e9
