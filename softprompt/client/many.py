"""Many calls at once: a bounded number run together, and their results keep the order of the inputs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from shared.errors import InvalidInput, Overloaded

T = TypeVar("T")
R = TypeVar("R")
MAX_CONCURRENCY = 1024
_WINDOW = 4
"""Started calls for each one that may run: finished results wait for a slow earlier one while others go on."""
_ATTEMPTS, _LONGEST_PAUSE_SECONDS = 6, 30.0


def check_concurrency(concurrency: int) -> None:
    """Raises InvalidInput for a number of simultaneous calls outside 1 to MAX_CONCURRENCY."""
    if not 1 <= concurrency <= MAX_CONCURRENCY:
        raise InvalidInput.of("concurrency", f"must be from 1 to {MAX_CONCURRENCY}, is {concurrency}")


async def in_order(inputs: Iterable[T], call: Callable[[T], Awaitable[R]], concurrency: int) -> AsyncIterator[R]:
    """The results of `call` in the order of the inputs, which are taken only as they are needed."""
    running, source = asyncio.Semaphore(concurrency), iter(inputs)
    waiting: deque[asyncio.Task[R]] = deque()

    async def one(item: T) -> R:
        async with running:
            return await call(item)

    try:
        is_over = False
        while True:
            while not is_over and len(waiting) < _WINDOW * concurrency:
                try:
                    waiting.append(asyncio.create_task(one(next(source))))
                except StopIteration:
                    is_over = True
            if not waiting:
                return
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def patient(call: Callable[[], Awaitable[R]]) -> R:
    """The result of a call that is repeated while the service is overloaded, each time after the pause that it asks
    for. Raises Overloaded after several attempts, or at once if the pause is long or a budget is used up.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return await call()
        except Overloaded as error:
            if error.is_of_budget or error.retry_after_seconds > _LONGEST_PAUSE_SECONDS:
                raise
            await asyncio.sleep(error.retry_after_seconds)
    return await call()
