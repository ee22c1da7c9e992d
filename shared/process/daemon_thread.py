"""Runs a long function next to an event loop, in a new thread that ends with the function."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")


async def on_daemon_thread(function: Callable[[], Result], name: str) -> Result:
    """Like `asyncio.to_thread`, but in a daemon thread: the process can end while the function runs."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:
            outcome: tuple[Result | None, BaseException | None] = (None, error)
        else:
            outcome = (result, None)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, future, *outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future


async def close_within(seconds: float, close: Callable[[], object], name: str) -> None:
    """Call `close` in a thread and stop waiting after `seconds`, so that a stopping service keeps to its grace time.

    Never raises: failures are logged. `name` says in the log what is closed.
    """
    try:
        async with asyncio.timeout(seconds):
            await on_daemon_thread(close, f"close {name}")
    except TimeoutError:
        log.warning("closing takes too long, left open: %s", name)
    except Exception:
        log.exception("closing failed: %s", name)


def settle(future: asyncio.Future[Result], result: Result | None, error: BaseException | None) -> None:
    """Set the future's result or error, unless it is done because its waiter was cancelled. Call it on its loop."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # type: ignore[arg-type]
