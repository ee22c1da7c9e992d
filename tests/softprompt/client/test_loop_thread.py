"""What a synchronous caller is promised when an interrupt comes at the worst moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from softprompt.client.loop_thread import LoopThread


def test_an_interrupt_between_a_steps_start_and_its_wait_closes_the_iterator(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, closed = threading.Event(), threading.Event()

    async def one_then_silence() -> AsyncIterator[int]:
        try:
            yield 1
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    loop = LoopThread("test")
    elements = loop.iterate(one_then_silence())
    assert next(elements) == 1
    schedule = asyncio.run_coroutine_threadsafe

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.undo()
        schedule(*arguments)
        waiting.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(elements)
    closed.wait()
    loop.stop()


def test_the_end_of_a_call_may_come_after_its_loop_is_closed() -> None:
    async def running() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    thread = LoopThread("test")
    loop = thread.run(running())
    thread.stop()
    # As the loop of another client does with what it finds in gRPC's completion queue.
    assert loop.call_soon_threadsafe(print).cancelled()
    with pytest.raises(RuntimeError, match="the client is closed"):
        thread.run(running())


def test_an_iterator_that_garbage_collection_ends_in_the_loops_thread_is_closed() -> None:
    closed = threading.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    async def collect(held: list[Any]) -> None:
        held.clear()

    loop = LoopThread("test")
    held: list[Any] = [loop.iterate(endless())]
    assert next(held[0]) == 1
    loop.run(collect(held))  # a warning of an ignored exception is an error
    closed.wait()
    loop.stop()
