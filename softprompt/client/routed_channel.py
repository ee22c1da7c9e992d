"""A channel that goes to the replicas of a prompt store, for the generated stubs of clients that can read the store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import grpc

from shared.errors import InvalidInput, Overloaded, SoftPromptError, Unavailable
from shared.rpc.errors import error_from_rpc
from softprompt.client.calls import metadata_of, note_answer
from softprompt.client.channel import open_replica_channel
from softprompt.client.security import ClientSecurity, TokenSource
from softprompt.extras import advice, missing_packages
from softprompt.routing.ask import Call
from softprompt.routing.overview import OVERVIEWS
from softprompt.routing.routing import Routing

Serializer = Callable[[Any], bytes] | None
Deserializer = Callable[[bytes], Any] | None
SCHEME = "store:"
"""Scheme of an address `store:URL`, with the URL of the prompt store."""
_PAUSES_SECONDS = (0.15, 0.45, 1.35)
"""Longest pauses before the retries of a call that no replica accepted, as in other channels' retry policy."""
_LIST_SECONDS = 30.0


class RoutedChannel:
    """The part of a channel that generated stubs use. Follows the store from the first call until `close`."""

    def __init__(self, url: str, security: ClientSecurity, retry_overloaded: bool) -> None:
        self._url, self._security, self._retry_overloaded = url, security, retry_overloaded
        self._tokens = TokenSource(security)
        self._opening: asyncio.Task[Routing] | None = None
        self._following: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def unary_unary(
        self, method: str, request_serializer: Serializer = None, response_deserializer: Deserializer = None, **_: Any
    ) -> Callable[..., Awaitable[Any]]:
        """As grpc.aio.Channel.unary_unary."""

        async def call(request: Any, *, timeout: float | None = None, **_: Any) -> Any:  # noqa: ASYNC109 - as gRPC's
            given = self._call(method, request_serializer, request, timeout)
            response = await self._first(lambda routing: self._unary(routing, given))
            return response_deserializer(response) if response_deserializer else response

        return call

    def unary_stream(
        self, method: str, request_serializer: Serializer = None, response_deserializer: Deserializer = None, **_: Any
    ) -> Callable[..., RoutedStream]:
        """As grpc.aio.Channel.unary_stream."""

        def call(request: Any, *, timeout: float | None = None, **_: Any) -> RoutedStream:
            given = self._call(method, request_serializer, request, timeout)
            return RoutedStream(self._responses(given), response_deserializer, self._ending)

        return call

    async def close(self, grace: float | None = None) -> None:
        """Close the connections; running calls are cancelled."""
        for task in (self._following, *self._ending):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        if self._opening is not None:
            self._opening.cancel()
            with suppress(asyncio.CancelledError, SoftPromptError):
                await (await self._opening).close()

    def _call(self, method: str, serializer: Serializer, request: Any, seconds: float | None) -> Call:
        data = serializer(request) if serializer else request
        return Call(method.rpartition("/")[2], data, metadata_of(self._tokens), seconds, note_answer)

    @staticmethod
    async def _unary(routing: Routing, call: Call) -> bytes:
        overview = OVERVIEWS.get(call.name)
        return await (routing.unary(call) if overview is None else overview(routing, call))

    async def _responses(self, call: Call) -> AsyncGenerator[bytes, None]:
        opened: list[AsyncGenerator[bytes, None]] = []

        async def begin(routing: Routing) -> bytes | None:
            opened.append(routing.stream(call))
            return await anext(opened[-1], None)

        first = await self._first(begin)
        if first is None:
            return
        try:
            yield first
            async for response in opened[-1]:
                yield response
        finally:
            await opened[-1].aclose()

    async def _first(self, begin: Callable[[Routing], Awaitable[Any]]) -> Any:
        """The first response. A call that no replica took is repeated, after a pause."""
        routing = await self._routing()
        for pause_seconds in (*_PAUSES_SECONDS, None):
            try:
                return await begin(routing)
            except (grpc.aio.AioRpcError, Unavailable) as error:
                found = error_from_rpc(error) if isinstance(error, grpc.aio.AioRpcError) else error
                overloaded = isinstance(found, Overloaded) and not found.is_of_budget and self._retry_overloaded
                if pause_seconds is None or not (isinstance(found, Unavailable) or overloaded):
                    raise
                asked_pause = found.retry_after_seconds if isinstance(found, Overloaded) else 0.0
                if asked_pause > _PAUSES_SECONDS[-1]:
                    raise
                await asyncio.sleep(max(asked_pause, random.uniform(0, pause_seconds)))
        raise AssertionError

    async def _routing(self) -> Routing:
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.get_running_loop().create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Routing:
        if missing := missing_packages("service"):
            raise InvalidInput.of("inference", f"{SCHEME}{self._url}: {advice(missing, 'inference')}")
        # By name, because the client is light: it needs what the services need only for these addresses.
        directory = await import_module("softprompt.routing.store").open_directory(self._url)
        routing = Routing(directory, lambda address: open_replica_channel(address, self._security))
        listed = asyncio.Event()

        def changed() -> None:
            routing.links()
            listed.set()

        self._following = asyncio.get_running_loop().create_task(directory.run(changed))
        try:
            async with asyncio.timeout(_LIST_SECONDS):
                await listed.wait()
        except TimeoutError:
            self._following.cancel()
            raise Unavailable("the prompt store does not say which replicas there are") from None
        return routing


class RoutedStream:
    """The part of a streaming call that the client uses."""

    def __init__(
        self, responses: AsyncGenerator[bytes, None], deserializer: Deserializer, ending: set[asyncio.Task[None]]
    ) -> None:
        self._responses, self._deserializer, self._ending = responses, deserializer, ending
        self._step: asyncio.Task[bytes | None] | None = None

    async def read(self) -> Any:
        """The next response, or grpc.aio.EOF."""
        self._step = asyncio.get_running_loop().create_task(_next(self._responses))
        response = await self._step
        if response is None:
            return grpc.aio.EOF
        return self._deserializer(response) if self._deserializer else response

    def cancel(self) -> None:
        """End the call. Does nothing after the end."""
        with suppress(RuntimeError):  # no loop runs any more: nothing is left to end
            task = asyncio.get_running_loop().create_task(self._close())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _close(self) -> None:
        if self._step is not None and not self._step.done():
            self._step.cancel()
            await asyncio.wait({self._step})
        await self._responses.aclose()


async def _next(responses: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(responses, None)
