"""One streamed answer: an iterator of deltas, asynchronous or blocking. The call ends with the iteration."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

from prompttuning.v1 import generation_pb2

from shared.errors import Unavailable
from shared.values.generation import GenerationDelta, GenerationEnd, GenerationStart
from shared.wire.mirror import read
from softprompt.client.connection import Peer
from softprompt.client.loop_thread import LoopThread

Responses = AsyncIterator[generation_pb2.GenerateStreamResponse]


class GenerationStream:
    """`async for delta in stream`; `start` is set before the first delta, `end` after the last one.

    With several completions, their deltas are interleaved (`delta.index`), and `ends` has the end of each.

    The call begins with `started()` or the first delta. Breaking out of the loop, an exception, or `async with` cancels
    it; a stream can be iterated once. Raises Unavailable for an answer that does not begin with its start or has no
    end.
    """

    def __init__(self, peer: Peer, open_call: Callable[[], Any], num_completions: int = 1) -> None:
        self._peer, self._open_call, self._num_completions = peer, open_call, num_completions
        self._call: Any = None
        self.start: GenerationStart | None = None
        self.ends: dict[int, GenerationEnd] = {}

    @property
    def end(self) -> GenerationEnd | None:
        """The end of completion 0, None before it."""
        return self.ends.get(0)

    async def started(self) -> GenerationStart:
        """The first message: the version, the token counts and the seed of the answer."""
        if self.start is None:
            self._call = self._open_call()
            async with self._peer.errors():
                first = await self._call.read()
            if not isinstance(first, generation_pb2.GenerateStreamResponse):
                self.cancel()
                raise Unavailable("the stream ended before its first message")
            if not first.HasField("start"):
                self.cancel()
                raise Unavailable(self._misplaced(first))
            self.start = read(GenerationStart, first.start)
        return self.start

    async def __aiter__(self) -> AsyncIterator[GenerationDelta]:
        try:
            await self.started()
            async with self._peer.errors():
                async for response in self._responses():
                    if response.HasField("delta"):
                        yield read(GenerationDelta, response.delta)
                    elif response.HasField("end"):
                        self._note_end(response.end)
            if len(self.ends) < self._num_completions:
                stream = f"the stream of {self._peer.name} at {self._peer.endpoint}"
                raise Unavailable(f"{stream} ended before the answer's end")
        finally:
            self.cancel()

    def _misplaced(self, first: generation_pb2.GenerateStreamResponse) -> str:
        part = {"delta": "text", "end": "end"}.get(first.WhichOneof("part") or "", "unknown part")
        if part == "end":
            part = f"end (finish reason {self._note_end(first.end).finish_reason})"
        answer = f"the answer of {self._peer.name} at {self._peer.endpoint}"
        return f"{answer} begins with its {part}, not with what it is generated from"

    def _note_end(self, message: generation_pb2.GenerationEnd) -> GenerationEnd:
        end = self.ends[message.index] = read(GenerationEnd, message)
        return end

    async def _responses(self) -> Responses:
        while isinstance(response := await self._call.read(), generation_pb2.GenerateStreamResponse):
            yield response

    def cancel(self) -> None:
        """Cancel the call, so that the service frees its resources. Does nothing after the end."""
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


class SyncGenerationStream:
    """`for delta in stream`; `start` is set before the first delta, `end` after the last. Leaving the loop cancels."""

    def __init__(self, stream: GenerationStream, loop: LoopThread) -> None:
        self._stream, self._loop = stream, loop

    @property
    def start(self) -> GenerationStart | None:
        """None before the first message."""
        return self._stream.start

    @property
    def end(self) -> GenerationEnd | None:
        """The end of completion 0, None before it."""
        return self._stream.end

    @property
    def ends(self) -> dict[int, GenerationEnd]:
        """The ends of all completions so far, by index."""
        return self._stream.ends

    def started(self) -> GenerationStart:
        """The first message: the version, the token counts and the seed of the answer."""
        return self._loop.run(self._stream.started())

    def __iter__(self) -> Iterator[GenerationDelta]:
        return self._loop.iterate(aiter(self._stream))

    def cancel(self) -> None:
        """Cancel the call. Does nothing after the end."""
        self._loop.run(self._cancel())

    async def _cancel(self) -> None:
        self._stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
