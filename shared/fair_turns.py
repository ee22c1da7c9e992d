"""Whose work is next where several tenants wait for few places: a queue for each tenant, served in turns.

The tenant with the fewest calls in progress goes first; of equal ones that which was served longest ago. So a tenant
waits for one call of each other tenant at most, however many calls the others have queued.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")

SERVICE = ""
"""Holder of what the service does by itself, and of everything where no tenants are configured. It has no share: it may
use all places.
"""


def places_of_one(num_places: int) -> int:
    """Places that one tenant may use at a time: all but a quarter, and all but one at least, so that there is always
    one for another.
    """
    return max(1, num_places - max(1, num_places // 4))


class FairTurns(Generic[Item]):
    """Items that wait and items in progress, by holder. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[
            str, deque[Item]
        ] = {}  # in the order of service: the holder that was served last is the last one
        self._running: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Item]:
        return (item for items in self._waiting.values() for item in items)

    def add(self, holder: str, item: Item) -> None:
        self._waiting.setdefault(holder, deque()).append(item)

    def remove(self, holder: str, item: Item) -> None:
        """Does nothing if the item does not wait."""
        items = self._waiting.get(holder, ())
        if item in items:
            self._waiting[holder].remove(item)
            self._tidy(holder)

    def clear(self) -> None:
        self._waiting.clear()

    def num_running(self, holder: str) -> int:
        return self._running[holder]

    def num_ready(self, limit_of: Callable[[str], int]) -> int:
        """Waiting items that could all be in progress at once under each holder's limit."""
        return sum(
            min(len(items), max(0, limit_of(holder) - self._running[holder])) for holder, items in self._waiting.items()
        )

    def start_next(self, limit_of: Callable[[str], int]) -> tuple[str, Item] | None:
        """The next item, in progress from now on; None if no holder below its limit waits. `finish` it later."""
        ready = [holder for holder in self._waiting if self._running[holder] < limit_of(holder)]
        if not ready:
            return None
        holder = min(ready, key=self._running.__getitem__)  # the first of equal ones
        items = self._waiting.pop(holder)
        item = items.popleft()
        if items:
            self._waiting[holder] = items  # at the end
        self._running[holder] += 1
        return holder, item

    def finish(self, holder: str) -> None:
        """One item of the holder is no longer in progress."""
        self._running[holder] -= 1
        if not self._running[holder]:
            del self._running[holder]

    def _tidy(self, holder: str) -> None:
        if not self._waiting[holder]:
            del self._waiting[holder]


class FairSlots:
    """A semaphore of one event loop whose tenants take turns; none holds all the places. Use it as `async with
    slots.taken(holder):`.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots, self._num_taken = num_slots, 0
        self._turns: FairTurns[asyncio.Future[None]] = FairTurns()

    @asynccontextmanager
    async def taken(self, holder: str) -> AsyncIterator[None]:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.add(holder, granted)
        self._grant()
        try:
            await granted
            yield
        finally:
            if granted.done() and not granted.cancelled():
                self._num_taken -= 1
                self._turns.finish(holder)
                self._grant()
            else:
                self._turns.remove(holder, granted)

    def _limit_of(self, holder: str) -> int:
        return self._num_slots if holder == SERVICE else places_of_one(self._num_slots)

    def _grant(self) -> None:
        while self._num_taken < self._num_slots and (found := self._turns.start_next(self._limit_of)) is not None:
            holder, granted = found
            if granted.done():  # its waiter was cancelled and has not run yet
                self._turns.finish(holder)
            else:
                granted.set_result(None)
                self._num_taken += 1
