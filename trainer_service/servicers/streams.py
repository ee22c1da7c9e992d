"""Streams in both directions: uploads of a header and chunks, and watches that end when the service drains."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from prompttuning.v1.common_pb2 import Heartbeat

from shared.errors import InvalidInput, Unavailable

Item = TypeVar("Item")


async def header_and_chunks(requests: AsyncIterator[Any]) -> tuple[Any, AsyncIterator[bytes]]:
    """Take the header off a stream of `{header | chunk}` messages; what remains are the chunks. Raises InvalidInput."""
    first = await anext(requests, None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidInput.of("header", "must be the first message of the stream")
    return first.header, _chunks(requests)


async def _chunks(requests: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidInput.of("chunk", "every message after the first must be a chunk")
        yield request.chunk


class Beat:
    """Nothing has come for a while."""


BEAT = Beat()
_FIRST_BEAT_SECONDS = 1.0
"""A watch without news sends its first heartbeat early, so that clients learn the interval."""


async def until_draining(
    items: AsyncIterator[Item], draining: asyncio.Event, heartbeat_seconds: float
) -> AsyncGenerator[Item | Beat, None]:
    """The items, and BEAT whenever none has come for at most `heartbeat_seconds`. Raises Unavailable once `draining` is
    set, so that the caller continues at another replica from the same position.
    """
    drained = asyncio.ensure_future(draining.wait())
    pause_seconds = min(_FIRST_BEAT_SECONDS, heartbeat_seconds)
    try:
        while True:
            following = asyncio.ensure_future(anext(items, None))
            try:
                while True:
                    done, _ = await asyncio.wait(
                        {following, drained}, timeout=pause_seconds, return_when=asyncio.FIRST_COMPLETED
                    )
                    if done:
                        break
                    pause_seconds = heartbeat_seconds * random.uniform(0.8, 1.0)
                    yield BEAT
                if not following.done():
                    raise Unavailable("the trainer is shutting down; watch again from the last event")
            finally:
                await _cancelled(following)
            item = following.result()
            if item is None:
                return
            yield item
    finally:
        drained.cancel()
        if isinstance(items, AsyncGenerator):
            await items.aclose()


def heartbeat(heartbeat_seconds: float) -> Heartbeat:
    """A heartbeat event with its interval."""
    interval = Duration()
    interval.FromMilliseconds(round(1000 * heartbeat_seconds))
    return Heartbeat(interval=interval)


async def _cancelled(task: asyncio.Future[Any]) -> None:
    """Cancel it unless it is done, and wait until it has left its generator."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
