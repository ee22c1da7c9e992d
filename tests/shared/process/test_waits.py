from __future__ import annotations

import asyncio

import pytest

from shared.process.waits import wait_at_most


async def test_a_wait_ends_with_its_event() -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(wait_at_most(1e6, event))
    await asyncio.sleep(0)
    event.set()
    await waiting


async def test_a_wait_ends_with_its_time() -> None:
    await wait_at_most(0.001, event := asyncio.Event())
    assert event.is_set()


async def test_the_time_of_a_cancelled_wait_does_not_set_the_event() -> None:
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    waiting = asyncio.create_task(wait_at_most(0.001, event))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    passed = loop.create_future()
    loop.call_later(0.002, passed.set_result, None)
    await passed
    assert not event.is_set()
