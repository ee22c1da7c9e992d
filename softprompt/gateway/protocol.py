"""uvicorn's HTTP protocol with time limits that uvicorn does not have: for a request's head, and for slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Time for a new connection, or a new request on an open one, to send a whole head."""
STALL_SECONDS = 60.0
"""Time for which a client may read nothing while a response waits."""
HEAD_BYTES = 32 << 10


class TimedProtocol(H11Protocol):
    """Closes connections that only occupy a place."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_timer = _Timer(HEAD_SECONDS, self._abort)
        self._stall_timer = _Timer(STALL_SECONDS, self._abort)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer.start()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # A head has begun, or a body goes on whose request has been answered; uvicorn's own timer has ended.
        if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE:
            self._head_timer.start()
        else:
            self._head_timer.stop()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stall_timer.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._head_timer.stop()
        self._stall_timer.stop()

    def _abort(self) -> None:
        self.transport.abort()


class _Timer:
    """Calls a function once, `seconds` after the first start since the last stop."""

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        self._seconds, self._function = seconds, function
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(self._seconds, self._function)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
