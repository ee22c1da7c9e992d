"""Fair sharing of a limited number of slots: one queue per tenant, served in turns.

The tenant with the fewest calls in progress goes first; of equal tenants, the one that was served longest ago. A
tenant therefore waits for at most one call of each other tenant, regardless of how many calls the others have queued.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")

SERVICE = ""
"""Holder of the service's own work, and of all work if no tenants are configured. It may use all slots."""


def places_of_one(num_places: int) -> int:
    """Slots that one tenant may use at a time: three quarters, so that other tenants always find a free slot.

    At least one slot is left to others, unless there is only one.
    """
    return max(1, num_places - max(1, num_places // 4))


class FairTurns(Generic[Item]):
    """Waiting items and the number of items in progress, by holder. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Item]] = {}
        """Queues by holder, in the order in which the holders were last served."""
        self._running: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Item]:
        return (item for items in self._waiting.values() for item in items)

    def add(self, holder: str, item: Item) -> None:
        """Append the item to the holder's queue."""
        self._waiting.setdefault(holder, deque()).append(item)

    def remove(self, holder: str, item: Item) -> None:
        """Remove a waiting item. Does nothing if the item is not waiting."""
        items = self._waiting.get(holder, ())
        if item in items:
            self._waiting[holder].remove(item)
            self._tidy(holder)

    def clear(self) -> None:
        """Remove all waiting items; items in progress are unaffected."""
        self._waiting.clear()

    def num_ready(self, limit_of: Callable[[str], int]) -> int:
        """Number of waiting items that could start now without exceeding any holder's limit."""
        return sum(
            min(len(items), max(0, limit_of(holder) - self._running[holder])) for holder, items in self._waiting.items()
        )

    def start_next(self, limit_of: Callable[[str], int]) -> tuple[str, Item] | None:
        """Take the next item and its holder; None if no holder below its limit has a waiting item.

        The item counts as in progress until `finish`.
        """
        ready = [holder for holder in self._waiting if self._running[holder] < limit_of(holder)]
        if not ready:
            return None
        holder = min(ready, key=self._running.__getitem__)  # of equal holders the one served longest ago
        items = self._waiting.pop(holder)
        item = items.popleft()
        if items:
            self._waiting[holder] = items  # moves the holder to the end
        self._running[holder] += 1
        return holder, item

    def finish(self, holder: str) -> None:
        """Record that one of the holder's items is no longer in progress."""
        self._running[holder] -= 1
        if not self._running[holder]:
            del self._running[holder]

    def _tidy(self, holder: str) -> None:
        if not self._waiting[holder]:
            del self._waiting[holder]


class FairSlots:
    """A semaphore of one event loop: tenants take turns, none can hold all slots. `async with slots.taken(holder):`"""

    def __init__(self, num_slots: int) -> None:
        self._num_slots, self._num_taken = num_slots, 0
        self._turns: FairTurns[asyncio.Future[None]] = FairTurns()

    @asynccontextmanager
    async def taken(self, holder: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it inside the `async with` block."""
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
