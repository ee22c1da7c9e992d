"""Requests as they come off the wire: read or refused with a reason, the first one awaited for a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from shared.errors import DeadlineExceeded, InvalidInput

FIRST_MESSAGE_SECONDS = 60.0
"""A call whose request has not arrived after that is given up."""

END: Any = object()


async def first_of(requests: AsyncIterator[Any], may_be_none: bool = False) -> Any:
    """END if there is none and that is allowed. Raises DeadlineExceeded for one that doesn't come, InvalidInput for none."""
    try:
        async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
            first = await anext(requests, END)
    except TimeoutError:
        raise DeadlineExceeded(f"the request did not arrive within {FIRST_MESSAGE_SECONDS:g} seconds") from None
    if first is END and not may_be_none:
        raise InvalidInput.of("request", "no message was sent")
    return first


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a message that is not what the method takes: gRPC itself would answer UNKNOWN and tell the parser's name."""

    reason: str


def reader_of(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data) if deserialize else data
        except DecodeError as error:
            return _Unreadable(str(error).rpartition(": ")[2])

    return read if deserialize else None


def check_readable(request: Any) -> None:
    if isinstance(request, _Unreadable):
        raise InvalidInput.of("request", f"can't be read as the method's message: {request.reason[:200]}")
