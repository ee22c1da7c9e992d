"""Waits for conditions. pytest's timeout is the only bound, so that no test depends on a machine's speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any]) -> Any:
    """Returns the first true value of a plain or an async function."""
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], object], pause_seconds: float = 0.01) -> None:
    """The same in a thread without an event loop. `pause_seconds`: between two looks at an expensive condition."""
    while not condition():
        time.sleep(pause_seconds)
