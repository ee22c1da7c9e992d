"""A backend with the failures of real ones: it dies at a chosen write, loses acknowledgements, reports false conflicts,
becomes unavailable.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from shared.errors import Unavailable
from shared.store.base import ObjectBackend, ObjectInfo


class Killed(BaseException):
    """Simulates the death of the process; a BaseException, so that nothing catches it."""


class FaultyBackend:
    """Forwards all calls to `inner` and injects faults."""

    def __init__(self, inner: ObjectBackend) -> None:
        self.inner = inner
        self.unavailable = False
        self.num_reads = self.num_lists = self.num_writes = self.num_refused = 0
        self.on_write: Callable[[int, str, Callable[[], bool]], bool] = lambda _number, _key, write: write()
        """Gets the number of the write (from 1), its key and the write itself; returns what `create` is to return."""

    @property
    def poll_seconds(self) -> float:
        return self.inner.poll_seconds

    def get(self, key: str, max_bytes: int) -> bytes | None:
        self._check()
        self.num_reads += 1
        return self.inner.get(key, max_bytes)

    def head(self, key: str) -> ObjectInfo | None:
        self._check()
        self.num_reads += 1
        return self.inner.head(key)

    def list(self, folder: str) -> list[ObjectInfo]:
        self._check()
        self.num_lists += 1
        return self.inner.list(folder)

    def create(self, key: str, data: bytes) -> bool:
        return self._write(key, lambda: self.inner.create(key, data))

    def put(self, key: str, data: bytes) -> None:
        def write() -> bool:
            self.inner.put(key, data)
            return True

        self._write(key, write)

    def delete(self, key: str) -> None:
        def write() -> bool:
            self.inner.delete(key)
            return True

        self._write(key, write)

    def sweep(self) -> int:
        self._check()
        return self.inner.sweep()

    def close(self) -> None:
        self.inner.close()

    def _write(self, key: str, write: Callable[[], bool]) -> bool:
        self._check()
        self.num_writes += 1
        return self.on_write(self.num_writes, key, write)

    def _check(self) -> None:
        if self.unavailable:
            self.num_refused += 1
            raise Unavailable("the prompt store does not answer")


def killed_at(number: int, after: bool) -> Callable[[int, str, Callable[[], bool]], bool]:
    """Dies at the write with this number, before or right after it takes effect."""

    def on_write(current: int, _key: str, write: Callable[[], bool]) -> bool:
        if current == number and not after:
            raise Killed
        done = write()
        if current == number:
            raise Killed
        return done

    return on_write


def unreliable(seed: int, share: float) -> Callable[[int, str, Callable[[], bool]], bool]:
    """This share of the writes is lost, the same share is done without an acknowledgement, and a third of the creations
    is refused falsely.
    """
    chance = random.Random(seed)

    def on_write(_number: int, key: str, write: Callable[[], bool]) -> bool:
        fate = chance.random()
        if fate < share:
            raise Unavailable("the request was lost")
        if fate < 2 * share:
            write()
            raise Unavailable("the acknowledgement was lost")
        if fate < 3 * share and key.startswith("log/"):
            return False
        return write()

    return on_write
