"""Watches that survive the end of a stream: restarts, gateways that cut or reset it, connections that die silently.

Each message carries its position, so a new call continues after the last one. Errors that only the caller can fix (a
wrong name, no permission) end the watch at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from typing import Any

import grpc
from google.protobuf.message import Message
from prompttuning.v1.common_pb2 import Heartbeat

from shared.errors import SoftPromptError, Unavailable
from softprompt.client.connection import Peer

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.2, 5.0
SILENT_SECONDS = 60.0
"""Until the first heartbeat announces their interval."""
_SILENT_INTERVALS = 3

INTERRUPTIONS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,  # a reset stream; the caller's own cancellation is asyncio's CancelledError
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,  # a gateway's: a watch has no deadline of its own
        grpc.StatusCode.ABORTED,
    }
)


class Interrupted(Exception):
    """The stream ended and a new call may succeed; `error` is raised if none does."""

    def __init__(self, error: SoftPromptError) -> None:
        super().__init__(error.message)
        self.error = error


class Silence(Interrupted):
    """No message for so long that the connection is dead, or that the server sends no heartbeats."""


class Contact:
    """Time of the last message, the announced interval of heartbeats, and the pause before the next call."""

    def __init__(self, reconnect_seconds: float) -> None:
        self._reconnect_seconds = reconnect_seconds
        self._last = time.monotonic()
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._interval_seconds: float | None = None

    @property
    def silent_seconds(self) -> float:
        """Time without a message after which the connection counts as dead."""
        return SILENT_SECONDS if self._interval_seconds is None else _SILENT_INTERVALS * self._interval_seconds

    def heard(self) -> None:
        """A message has arrived."""
        self._last, self._pause_seconds = time.monotonic(), FIRST_PAUSE_SECONDS

    def promised(self, heartbeat: Heartbeat) -> None:
        """A heartbeat has announced the interval."""
        self._interval_seconds = heartbeat.interval.ToNanoseconds() / 1e9 or None

    async def pause(self, interruption: Interrupted | None = None) -> None:
        """Wait before the next call: a random time below a bound that doubles, so that clients don't return all at
        once. Raises the interruption's error after `reconnect_seconds` without contact.
        """
        if interruption is not None and time.monotonic() - self._last > self._reconnect_seconds:
            raise interruption.error from interruption
        await asyncio.sleep(random.uniform(0, self._pause_seconds))
        self._pause_seconds = min(2 * self._pause_seconds, MAX_PAUSE_SECONDS)


def interruption_of(peer: Peer, error: grpc.aio.AioRpcError) -> Interrupted | None:
    """None for an error that a new call would not change."""
    return Interrupted(peer.domain_error(error)) if error.code() in INTERRUPTIONS else None


async def messages(peer: Peer, call: Any, contact: Contact) -> AsyncGenerator[Any, None]:
    """The messages of one streaming call, which is cancelled at the end. Raises Interrupted, or a final error."""
    try:
        while True:
            try:
                async with asyncio.timeout(contact.silent_seconds):
                    message = await call.read()
            except TimeoutError:
                silent = f"{peer.name} at {peer.endpoint} sent nothing for {contact.silent_seconds:g} s"
                raise Silence(Unavailable(silent, endpoint=peer.endpoint)) from None
            except grpc.aio.AioRpcError as error:
                if (interruption := interruption_of(peer, error)) is not None:
                    raise interruption from error
                raise await peer.explained(error) from error
            if not isinstance(message, Message):  # gRPC's mark of the end
                return
            contact.heard()
            yield message
    finally:
        call.cancel()
