"""What the prompt store needs of the place it keeps its bytes: a flat map of keys to bytes with create-if-absent.

Local directories, S3, R2, GCS and Azure all have this; nothing here asks for more (no compare-and-swap, no rename, no
append). Keys are made by `shared.store.layout`; a backend knows nothing of prompts or of the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from shared.errors import DamagedBlob

_KEY = re.compile(r"[a-zA-Z0-9._-]+(?:/[a-zA-Z0-9._-]+)*")


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object; `modified_at` is the backend's own clock, UTC."""

    key: str
    size_bytes: int
    modified_at: datetime


class ObjectBackend(Protocol):
    """All methods are synchronous and thread-safe, and raise `Unavailable` when the place is away.

    Reads see every write that was acknowledged before them. After `Unavailable` a write may or may not have happened.
    """

    @property
    def poll_seconds(self) -> float:
        """How often a watcher should look for news here: what an idle look costs, in time and money, decides."""

    def get(self, key: str, max_bytes: int) -> bytes | None:
        """The whole object, or None if there is none. Raises DamagedBlob, without reading it, if it is larger than
        `max_bytes`.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Write a new object, durable on return; False, and nothing changed, if the key exists."""

    def put(self, key: str, data: bytes) -> None:
        """Write or overwrite; readers see the old bytes or the new, never a mixture."""

    def head(self, key: str) -> ObjectInfo | None:
        """Size and time of one object, or None if it is not there."""

    def list(self, folder: str) -> list[ObjectInfo]:
        """Every object below `folder`, which ends in '/', however deep; sorted by key."""

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens if it is not there."""

    def sweep(self) -> int:
        """Remove what writers left half-way that died long ago; it belongs to nobody. Returns how many things went."""

    def close(self) -> None:
        """Release connections. The backend is of no use afterwards."""


def check_key(key: str) -> str:
    """Keys never leave the store's root: parts of letters, digits, '.', '_', '-', and no part is '.' or '..'.

    Raises ValueError: a wrong key is a fault of the program, since names and digests from outside are checked before.
    """
    if not _KEY.fullmatch(key) or any(part in {".", ".."} for part in key.split("/")):
        raise ValueError(f"not a store key: {key[:200]!r}")
    return key


def check_size(key: str, size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise DamagedBlob(f"{key} takes {size_bytes} bytes; at most {max_bytes} are read", key=key)
