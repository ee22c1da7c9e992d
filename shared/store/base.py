"""The interface of a storage backend: a flat map from keys to bytes with create-if-absent.

Local directories, S3, R2, GCS and Azure can all provide it. It requires no compare-and-swap, no rename and no append.
`shared.store.layout` builds the keys; a backend knows nothing about prompts or the log.
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
    """One stored object; `modified_at` is a UTC time of the backend's clock."""

    key: str
    size_bytes: int
    modified_at: datetime


class ObjectBackend(Protocol):
    """Stores objects. All methods are synchronous and thread-safe, and raise Unavailable if the storage is unavailable.

    Reads see every write that was acknowledged before them. After Unavailable, a write may or may not have happened.
    """

    @property
    def poll_seconds(self) -> float:
        """Recommended interval between polls of a watcher; it depends on the cost of a poll in time and money."""

    def get(self, key: str, max_bytes: int) -> bytes | None:
        """The whole object, or None if there is none. Raises DamagedBlob if it is larger than `max_bytes`."""

    def create(self, key: str, data: bytes) -> bool:
        """Write a new object, durable on return. If the key exists, returns False and changes nothing."""

    def put(self, key: str, data: bytes) -> None:
        """Write or overwrite an object. Readers see the old bytes or the new ones, never a mixture."""

    def head(self, key: str) -> ObjectInfo | None:
        """Size and time of one object, or None if there is none."""

    def list(self, folder: str) -> list[ObjectInfo]:
        """All objects below `folder`, which ends in '/', at any depth, sorted by key."""

    def delete(self, key: str) -> None:
        """Remove an object. Does nothing if there is none."""

    def sweep(self) -> int:
        """Remove old remains of writers that were killed. Returns the number of removed objects."""

    def close(self) -> None:
        """Release connections. The backend can't be used afterwards."""


def check_key(key: str) -> str:
    """Return the key, or raise ValueError if it could point outside the store's root.

    A key has parts of letters, digits, '.', '_' and '-', and no part is '.' or '..'. An invalid key is a bug, because
    names and digests from callers are checked earlier.
    """
    if not _KEY.fullmatch(key) or any(part in {".", ".."} for part in key.split("/")):
        raise ValueError(f"not a store key: {key[:200]!r}")
    return key


def check_size(key: str, size_bytes: int, max_bytes: int) -> None:
    """Raises DamagedBlob if an object is larger than `max_bytes`."""
    if size_bytes > max_bytes:
        raise DamagedBlob(f"{key} has {size_bytes} bytes; at most {max_bytes} are allowed", key=key)
