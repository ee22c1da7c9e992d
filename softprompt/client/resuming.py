"""Keeping a watch through everything that ends a stream: restarts, gateways that cut or reset it, connections that are silently dead.

The server says at which position each message stands, so a new call goes on after the last one. What only the caller can mend (a wrong
name, no permission) ends the watch at once.
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
"""Before the first heartbeat says how often they come."""
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
    """The stream ended in a way that a new call may mend; `error` is what to raise when it doesn't."""

    def __init__(self, error: SoftPromptError) -> None:
        super().__init__(error.message)
        self.error = error


class Silence(Interrupted):
    """Nothing came for so long that the connection must be dead, or the server is one that sends no heartbeats."""


class Contact:
    """When the service was last heard of, how often it promised to speak, and the pause before the next call."""

    def __init__(self, reconnect_seconds: float) -> None:
        self._reconnect_seconds = reconnect_seconds
        self._last = time.monotonic()
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._interval_seconds: float | None = None

    @property
    def silent_seconds(self) -> float:
        return SILENT_SECONDS if self._interval_seconds is None else _SILENT_INTERVALS * self._interval_seconds

    def heard(self) -> None:
        self._last, self._pause_seconds = time.monotonic(), FIRST_PAUSE_SECONDS

    def promised(self, heartbeat: Heartbeat) -> None:
        self._interval_seconds = heartbeat.interval.ToNanoseconds() / 1e9 or None

    async def pause(self, interruption: Interrupted | None = None) -> None:
        """Wait before the next call: at random up to a bound that doubles, so that clients cut off together don't come back together.

        Raises the interruption's error when there was no contact for too long.
        """
        if interruption is not None and time.monotonic() - self._last > self._reconnect_seconds:
            raise interruption.error from interruption
        await asyncio.sleep(random.uniform(0, self._pause_seconds))
        self._pause_seconds = min(2 * self._pause_seconds, MAX_PAUSE_SECONDS)


def interruption_of(peer: Peer, error: grpc.aio.AioRpcError) -> Interrupted | None:
    """None for what calling again would not mend."""
    return Interrupted(peer.domain_error(error)) if error.code() in INTERRUPTIONS else None


async def messages(peer: Peer, call: Any, contact: Contact) -> AsyncGenerator[Any, None]:
    """What comes on one streaming call, which is cancelled however this ends. Raises Interrupted, or the error that ends the watch."""
    try:
        while True:
            try:
                async with asyncio.timeout(contact.silent_seconds):
                    message = await call.read()
            except TimeoutError:
                silent = f"{peer.name} at {peer.endpoint} said nothing for {contact.silent_seconds:g} s"
                raise Silence(Unavailable(silent, endpoint=peer.endpoint)) from None
            except grpc.aio.AioRpcError as error:
                if (interruption := interruption_of(peer, error)) is not None:
                    raise interruption from error
                raise peer.domain_error(error) from error
            if not isinstance(message, Message):  # gRPC's mark of the end
                return
            contact.heard()
            yield message
    finally:
        call.cancel()
