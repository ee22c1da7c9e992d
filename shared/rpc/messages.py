"""Requests as they come off the wire: read or refused with a reason, the first one awaited for a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from shared.errors import DeadlineExceeded, InvalidInput, SoftPromptError

FIRST_MESSAGE_SECONDS = 60.0
"""A call whose request has not arrived after that is given up."""

HEAR_OUT_SECONDS = 2.0

END: Any = object()


async def first_of(requests: AsyncIterator[Any], may_be_none: bool = False) -> Any:
    """END if there is none and that is allowed. Raises DeadlineExceeded for one that doesn't come, InvalidInput for
    none.
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
    """Within, a refusal waits until the sender has said all, `HEAR_OUT_SECONDS` at most; what it still says is dropped.

    A call that ends while its client is writing reaches the client's side of gRPC as a broken write, and the reason may
    be lost.
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
    """Stands for a message that is not what the method takes: gRPC itself would answer UNKNOWN and tell the parser's
    name.
    """

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
