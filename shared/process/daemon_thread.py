"""A long piece of work beside an event loop, in a thread that is made for it and ends with it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")


async def on_daemon_thread(function: Callable[[], Result], name: str) -> Result:
    """Like `asyncio.to_thread`, but a process that is told to stop half-way does not wait for it."""
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
    """Close something that may hang, and leave it behind after `seconds`: a service that stops keeps to its grace time.
    Never raises.
    """
    try:
        async with asyncio.timeout(seconds):
            await on_daemon_thread(close, f"close {name}")
    except TimeoutError:
        log.warning("left open, since closing it takes too long: %s", name)
    except Exception:
        log.exception("closing failed: %s", name)


def settle(future: asyncio.Future[Result], result: Result | None, error: BaseException | None) -> None:
    """On the future's loop; one that is done already (its waiter was cancelled) stays as it is."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # type: ignore[arg-type]
