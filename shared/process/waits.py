"""Waits with a time limit."""

from __future__ import annotations

import asyncio


async def wait_at_most(seconds: float, event: asyncio.Event) -> None:
    """Waits until the event is set, and sets it itself after this time. For waits that often last that long: ending one
    by `asyncio.timeout` raises two exceptions. The event must have no other waiter.
    """
    limit = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        limit.cancel()
