"""Whose work is next where several tenants wait for few places: a queue for each tenant, served in turns.

The tenant with the fewest calls in progress goes first; of equal ones that which was served longest ago. So a tenant waits for one call
of each other tenant at most, however many calls the others have queued.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

SERVICE = ""
"""Holder of what the service does by itself, and of everything where no tenants are configured. It has no share: it may use all places."""


def places_of_one(num_places: int) -> int:
    """Places that one tenant may use at a time: all but a quarter, and all but one at least, so that there is always one for another."""
    return max(1, num_places - max(1, num_places // 4))


class FairTurns(Generic[Item]):
    """Items that wait and items in progress, by holder. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Item]] = {}  # in the order of service: the holder that was served last is the last one
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
        return sum(min(len(items), max(0, limit_of(holder) - self._running[holder])) for holder, items in self._waiting.items())

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
