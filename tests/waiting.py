"""Waits for conditions. pytest's timeout is the only bound, so that no test depends on a machine's speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any]) -> Any:
    """Returns the first true value of a plain or an async function.

    Looks every 10 ms, or less often if a look takes long, such as a scrape: what is waited for needs the processor.
    """
    while True:
        began = time.monotonic()
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(min(max(0.01, 9 * (time.monotonic() - began)), 0.05))


def wait_until(condition: Callable[[], object], pause_seconds: float = 0.01) -> None:
    """The same in a thread without an event loop. `pause_seconds`: between two looks at an expensive condition."""
    while not condition():
        time.sleep(pause_seconds)
