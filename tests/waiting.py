"""Waits for conditions, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

DEADLINE_SECONDS = 90.0
"""Far longer than any condition takes, even on a busy machine."""


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = DEADLINE_SECONDS) -> float:
    """Returns the seconds until the condition held. Raises TimeoutError if it never does."""
    begun = time.monotonic()
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return time.monotonic() - begun
            await asyncio.sleep(0.01)


def wait_until(
    condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS, *, pause_seconds: float = 0.01
) -> None:
    """The same in a thread without an event loop. `pause_seconds`: between two looks at an expensive condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition does not hold")
        time.sleep(pause_seconds)
