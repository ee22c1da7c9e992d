"""The part of a request's output that its consumer on the event loop has not read yet."""

from __future__ import annotations

import asyncio

from inference_service.engine.core.request import Delta, ScoreResult
from inference_service.engine.live_requests import Output
from inference_service.engine.text.text_stream import merge

Event = Output | BaseException


class DeltaStream:
    """One consumer's unread deltas. Used on the event loop; the engine's thread fills `held` between flushes."""

    def __init__(self, ready: asyncio.Event | None = None) -> None:
        """`ready` may be shared by the streams of one consumer."""
        self.deltas: list[Delta] = []
        self.score: ScoreResult | None = None
        self.error: BaseException | None = None
        self.ready = ready or asyncio.Event()
        self.held: list[Delta] = []
        self.flushed_at = 0.0

    def put(self, event: Event) -> None:
        """Add an output or an error, and wake the consumer."""
        if isinstance(event, BaseException):
            self.error = event
        else:
            self.score = event.score or self.score
            self.deltas.append(event.delta)
        self.ready.set()

    def taken(self) -> Delta | None:
        """All deltas since the last call, merged; None without any. Raises the stream's error if none are left."""
        if not self.deltas:
            if self.error is not None:
                raise self.error
            return None
        deltas, self.deltas = self.deltas, []
        return merge(deltas)

    async def take(self) -> Delta:
        """Wait for deltas and return all since the last call, merged. Raises the stream's error if none are left."""
        while (delta := self.taken()) is None:
            self.ready.clear()
            await self.ready.wait()
        return delta
