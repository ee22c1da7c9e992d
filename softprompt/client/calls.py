"""A channel that adds the caller's token and the current trace context to every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc

from shared.trace_context import trace_headers
from softprompt.client.security import TokenSource

Metadata = tuple[tuple[str, str], ...]


class LatestAnswer:
    """Metadata that the services answered in the latest call of a block of `carrying`."""

    def __init__(self) -> None:
        self._metadata: Any = ()
        self._call: Any = None

    def began(self, call: Any) -> None:
        """Note a call of gRPC."""
        self._call = call

    def answered(self, metadata: Any) -> None:
        """Note the metadata of a call that has no object of gRPC."""
        self._metadata, self._call = metadata, None

    async def metadata(self) -> Any:
        """The initial metadata, then the trailing one; empty if there was no call, or it has not ended."""
        if self._call is None or not self._call.done():
            return self._metadata
        return (*(await self._call.initial_metadata() or ()), *(await self._call.trailing_metadata() or ()))


_carried: ContextVar[Metadata | None] = ContextVar("softprompt_call_metadata", default=None)
_latest: ContextVar[LatestAnswer | None] = ContextVar("softprompt_call_answer", default=None)


@contextmanager
def carrying(metadata: Metadata, latest: LatestAnswer | None = None) -> Iterator[None]:
    """Send this metadata with every call that begins in the block, instead of the client's own token: a program such as
    the gateway passes on the tokens of its callers. `latest` notes what the services answer.
    """
    token, latest_token = _carried.set(metadata), _latest.set(latest)
    try:
        yield
    finally:
        _carried.reset(token)
        _latest.reset(latest_token)


def note_answer(metadata: Any) -> None:
    """Note the metadata of a call that began in a block of `carrying`."""
    if (latest := _latest.get()) is not None:
        latest.answered(metadata)


def metadata_of(tokens: TokenSource) -> Metadata:
    """The metadata of a call that begins now: what `carrying` has set, else the client's token; and the trace."""
    own = _carried.get()
    if own is None:
        token = tokens.token()
        own = (("authorization", f"Bearer {token}"),) * bool(token)
    return own + tuple(trace_headers().items())


class CallingChannel:
    """The part of a channel that generated stubs use. Reads the token before each call: it may have been renewed."""

    def __init__(self, channel: grpc.aio.Channel, tokens: TokenSource) -> None:
        self._channel, self._tokens = channel, tokens

    def unary_unary(self, *method: Any, **options: Any) -> Any:
        """As grpc.aio.Channel.unary_unary."""
        return self._carrying(self._channel.unary_unary(*method, **options))

    def unary_stream(self, *method: Any, **options: Any) -> Any:
        """As grpc.aio.Channel.unary_stream."""
        return self._carrying(self._channel.unary_stream(*method, **options))

    def stream_unary(self, *method: Any, **options: Any) -> Any:
        """As grpc.aio.Channel.stream_unary."""
        return self._carrying(self._channel.stream_unary(*method, **options))

    def stream_stream(self, *method: Any, **options: Any) -> Any:
        """As grpc.aio.Channel.stream_stream."""
        return self._carrying(self._channel.stream_stream(*method, **options))

    async def close(self, grace: float | None = None) -> None:
        """As grpc.aio.Channel.close; `grace` is in seconds."""
        await self._channel.close(grace)

    def _carrying(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Any, *, metadata: Sequence[tuple[str, str]] = (), **options: Any) -> Any:
            made = method(request, metadata=(*metadata, *metadata_of(self._tokens)), **options)
            if (latest := _latest.get()) is not None:
                latest.began(made)
            return made

        return call
