"""A long piece of work beside an event loop, in a thread that is made for it and ends with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

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


def settle(future: asyncio.Future[Result], result: Result | None, error: BaseException | None) -> None:
    """On the future's loop; one that is done already (its waiter was cancelled) stays as it is."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # type: ignore[arg-type]
