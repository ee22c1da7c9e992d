"""Run a coroutine that Ctrl-C, SIGTERM or a closed terminal ends cleanly, and a second signal ends at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows lacks some
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


class Interrupted(Exception):
    """A signal ended the coroutine, which has cleaned up."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"ended by {number.name}")
        self.number = number


def run_interruptible(work: Callable[[], Coroutine[Any, Any, None]], at_once: Callable[[], None]) -> None:
    """Run `work()`. The first signal cancels it and raises Interrupted in the end; each further one calls `at_once`."""
    asyncio.run(_run(work, at_once))


async def _run(work: Callable[[], Coroutine[Any, Any, None]], at_once: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []
    task = asyncio.create_task(work())

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        if len(received) == 1:
            task.cancel()
        else:
            at_once()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
    if received:
        raise Interrupted(received[0])
