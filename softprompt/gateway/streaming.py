"""Server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from softprompt.gateway.errors import Rename, api_error

DONE = b"data: [DONE]\n\n"
PING = b": still working\n\n"
"""A comment, which clients skip."""
_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
"""Line ends in Unicode, which are not line ends of events. Many clients split the text at them nevertheless."""


def event(data: Any, name: str = "") -> bytes:
    """One event. `name` is only for the Responses API."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_LINE_ENDS)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


class StreamFailed(Exception):
    """An error whose last event the endpoint writes. `status`: what a response without streaming would have."""

    def __init__(self, last_event: bytes, status: int) -> None:
        super().__init__(status)
        self.last_event, self.status = last_event, status


class EventStream(Response):
    """A response of events from a generator, which it closes at the end. A late error becomes a last event."""

    def __init__(
        self, events: AsyncGenerator[bytes], on_end: Callable[[], None], rename: Rename, model: str = ""
    ) -> None:
        """`on_end` is called in any case, `rename` and `model` are for errors."""
        self._events, self._on_end, self._rename, self._model = events, on_end, rename, model
        self.status_code, self.background = 200, None
        self.init_headers(
            {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",  # nginx would hold events back
            }
        )

    background: BackgroundTask | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._events) as events:
                try:
                    async for chunk in events:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                except Exception as error:
                    failed = self._failed(error)
                    scope["state"]["failed"] = failed.status
                    await send({"type": "http.response.body", "body": failed.last_event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._on_end()

    def _failed(self, error: Exception) -> StreamFailed:
        if isinstance(error, StreamFailed):
            return error
        found = api_error(error, self._rename, self._model)
        return StreamFailed(event(found.body), found.status)
