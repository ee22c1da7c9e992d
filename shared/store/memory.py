"""Stores objects in a dictionary: for tests, and for services that should keep nothing."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

from shared.store.base import ObjectInfo, check_key, check_size


class MemoryBackend:
    """An `ObjectBackend` in memory."""

    poll_seconds = 0.02

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, datetime]] = {}
        self._lock = threading.Lock()

    def get(self, key: str, max_bytes: int) -> bytes | None:
        found = self._objects.get(check_key(key))
        if found is None:
            return None
        check_size(key, len(found[0]), max_bytes)
        return found[0]

    def create(self, key: str, data: bytes) -> bool:
        with self._lock:
            if check_key(key) in self._objects:
                return False
            self._objects[key] = (bytes(data), datetime.now(UTC))
            return True

    def put(self, key: str, data: bytes) -> None:
        with self._lock:
            self._objects[check_key(key)] = (bytes(data), datetime.now(UTC))

    def head(self, key: str) -> ObjectInfo | None:
        found = self._objects.get(check_key(key))
        return None if found is None else ObjectInfo(key, len(found[0]), found[1])

    def list(self, folder: str) -> list[ObjectInfo]:
        with self._lock:
            matching = [(key, value) for key, value in self._objects.items() if key.startswith(folder)]
        return [ObjectInfo(key, len(data), modified_at) for key, (data, modified_at) in sorted(matching)]

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_key(key), None)

    def sweep(self) -> int:
        return 0

    def close(self) -> None:
        self._objects = {}
