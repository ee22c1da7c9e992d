"""Reads requests from the wire: refuses unreadable ones with a reason and limits the wait for the first one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from shared.errors import DeadlineExceeded, InvalidInput, SoftPromptError

FIRST_MESSAGE_SECONDS = 60.0
"""A call fails if its request has not arrived after this time."""

HEAR_OUT_SECONDS = 2.0
"""Longest time for which a refusal waits for the client to finish sending."""

END: Any = object()
"""Marks the end of a stream of requests."""


async def first_of(requests: AsyncIterator[Any], may_be_none: bool = False) -> Any:
    """The first request. If the stream is empty, END if `may_be_none`, else InvalidInput.

    Raises DeadlineExceeded if nothing arrives within FIRST_MESSAGE_SECONDS.
    """
    try:
        async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
            first = await anext(requests, END)
    except TimeoutError:
        raise DeadlineExceeded(f"the request did not arrive within {FIRST_MESSAGE_SECONDS:g} seconds") from None
    if first is END and not may_be_none:
        raise InvalidInput.of("request", "no message was sent")
    return first


@asynccontextmanager
async def heard_out(requests: AsyncIterator[Any]) -> AsyncIterator[None]:
    """Delay an error raised inside until the client has sent all its messages, at most HEAR_OUT_SECONDS.

    The remaining messages are dropped. If a call ended while its client was writing, gRPC could report a failed write
    to the client, and the reason would be lost.
    """
    try:
        yield
    except SoftPromptError:
        with suppress(TimeoutError):
            async with asyncio.timeout(HEAR_OUT_SECONDS):
                async for _ in requests:
                    continue
        raise


@dataclass(frozen=True)
class _Unreadable:
    """Replaces a message that can't be parsed; gRPC itself would answer UNKNOWN and show internals of the parser."""

    reason: str


def reader_of(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserializer that returns a placeholder for messages that can't be parsed; `check_readable` refuses it."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data) if deserialize else data
        except DecodeError as error:
            return _Unreadable(str(error).rpartition(": ")[2])

    return read if deserialize else None


def check_readable(request: Any) -> None:
    """Raises InvalidInput for a message that could not be parsed."""
    if isinstance(request, _Unreadable):
        raise InvalidInput.of("request", f"can't be read as the method's message: {request.reason[:200]}")
