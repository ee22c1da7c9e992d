"""Routers: the product's servicer, routing and directory over simulated connections to replicas.

A process that dies is noticed at once by those connected to it; one that stands still or is cut off is only noticed by
gRPC's keepalive. Messages of a connection neither overtake each other nor come twice. Replicas are of a build without
relays, so each stream is a call of gRPC.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, cast

import grpc
from prompttuning.v1 import generation_pb2

from shared.caller import calling, current_caller
from shared.errors import Unauthenticated, Unimplemented
from shared.process.call_pool import CallPool
from shared.rpc.errors import error_from_rpc, status_of
from softprompt.router.servicer import RouterServicer
from softprompt.routing.links import SERVICE, STREAMING
from softprompt.routing.routing import Routing
from softprompt.routing.store import StoreDirectory
from tests.simulation.loop import Node, start_on
from tests.simulation.serving import CALL_SECONDS, Answering, Replica

KEEPALIVE_SECONDS = 45.0
"""Time after which a connection without answers is lost, see `softprompt.client.channel`."""
_POLL_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_RESEND_SECONDS = 0.5
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_State = grpc.ChannelConnectivity


class Router(Answering):
    """A router: all of the product's except the server of gRPC."""

    def start(self) -> None:
        self.channels: dict[_Channel, None] = {}
        super().start()

    def kill(self) -> None:
        super().kill()
        for call in list(self.calls):
            call.cancel()

    def lose(self, replica: Replica) -> None:
        """The keepalive of its connection to a replica has found no answer."""
        for part in (*self.channels, *self.calls):
            part.lose(replica)

    async def _boot(self) -> None:
        pool, has_read = CallPool("prompt_store"), asyncio.Event()
        self.directory = StoreDirectory(await self._prompt_store(pool), _POLL_SECONDS, pool)
        self.routing = Routing(self.directory, lambda address: _Channel(self, address))
        handler = RouterServicer(self.routing, False, 1 << 20).handler()
        self._answer = cast(Any, handler.service(cast(Any, SimpleNamespace(method=SERVICE + STREAMING)))).unary_stream

        def records_read() -> None:
            has_read.set()
            self.routing.links()

        following = asyncio.create_task(self.directory.run(records_read))
        await has_read.wait()
        while all(link.rank for link in self.routing.links()):
            await asyncio.sleep(0.1)
        self.ready = True
        await following

    async def stream(self, prompt: str, alias: str) -> AsyncGenerator[dict[str, Any], None]:
        caller, asked = current_caller(), generation_pb2.GenerationInput(prompt=f"{prompt}@{alias}")
        self.world.callers[f"Bearer {caller.name}"] = caller
        request = generation_pb2.GenerateStreamRequest(input=asked).SerializeToString()
        async with aclosing(self._answer(request, _Context(f"Bearer {caller.name}"))) as messages:
            async for message in messages:
                yield json.loads(message)


class _Context:
    """What the router's servicer uses of a call to it (`grpc.aio.ServicerContext`)."""

    def __init__(self, token: str) -> None:
        self._metadata = (("authorization", token),)
        self._deadline = asyncio.get_running_loop().time() + CALL_SECONDS

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return self._metadata

    def time_remaining(self) -> float:
        return self._deadline - asyncio.get_running_loop().time()

    def set_trailing_metadata(self, metadata: object) -> None:
        """Its client does not read it."""

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Sequence[tuple[str, Any]]) -> None:
        raise error_from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details))


class _Channel:
    """A router's connection to an address, READY while the replica there reports SERVING (`grpc.aio.Channel`)."""

    def __init__(self, router: Router, address: str) -> None:
        self._router, self._address = router, address
        self._node: Node | None = None
        """What it is connected to."""
        self._state, self._next_try = _State.CONNECTING, asyncio.get_running_loop().time() + 0.02
        router.channels[self] = None

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        now, replica = asyncio.get_running_loop().time(), self._replica()
        if self._node is not None and (replica is None or replica.node is not self._node):
            self._node, self._state, self._next_try = None, _State.CONNECTING, now
        if self._node is None and now >= self._next_try:
            if replica is not None and replica.node.up and not self._router.world.is_cut(self._router, replica):
                self._node, self._state = replica.node, _State.READY
            else:
                self._state, self._next_try = _State.TRANSIENT_FAILURE, now + _RETRY_SECONDS
        return self._state

    def unary_stream(self, *_: object) -> Any:
        return lambda request, timeout, metadata: _Call(self._router, self._connected(), request, metadata)

    def stream_stream(self, *_: object) -> Any:
        return _NoRelay

    def lose(self, replica: Replica) -> None:
        if self._node is replica.node:
            self._node, self._state = None, _State.TRANSIENT_FAILURE
            self._next_try = asyncio.get_running_loop().time() + _RETRY_SECONDS

    async def close(self) -> None:
        self._router.channels.pop(self, None)

    def _replica(self) -> Replica | None:
        """The one that serves there now, also while it stands still."""
        found = (one for one in self._router.world.replicas if one.address == self._address)
        return next((one for one in found if one.ready and not one.node.is_killed), None)

    def _connected(self) -> Replica | None:
        return self._replica() if self.get_state() is _State.READY else None


class _Call:
    """A streaming call from a router to a replica, or to none (`grpc.aio.UnaryStreamCall`)."""

    def __init__(
        self, router: Router, replica: Replica | None, request: bytes, metadata: Sequence[tuple[str, str]]
    ) -> None:
        self._router, self._replica = router, replica
        self._of_router = contextvars.copy_context()
        self._seconds = router.world.rng.uniform(0.001, 0.01)
        self._sent, self._arrived, self._news = deque[Any](), deque[Any](), asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        if replica is None:
            self.break_off()
        else:
            router.calls[self] = replica.calls[self] = None
            self._work = start_on(replica.node, self._serve(replica, request, dict(metadata)))

    async def _serve(self, replica: Replica, request: bytes, metadata: dict[str, str]) -> None:
        faults = self._router.world.network_faults
        await asyncio.sleep(self._seconds)
        if faults.strikes("lost request"):
            return self.break_off()
        prompt, _, alias = generation_pb2.GenerateStreamRequest.FromString(request).input.prompt.partition("@")
        try:
            if (caller := self._router.world.callers.get(metadata.get("authorization", ""))) is None:
                raise Unauthenticated("no credentials")
            with calling(caller):
                async with aclosing(replica.stream(prompt, alias)) as stream:
                    async for token in stream:
                        if faults.strikes("lost answer"):
                            return self.break_off()
                        self._send(json.dumps(token).encode())
            self._send(grpc.aio.EOF)
        except Exception as error:
            self._send(_rpc_error(error))

    def break_off(self) -> None:
        """The connection is gone, after what was sent before."""
        self._send(_broken())

    def lose(self, replica: Replica) -> None:
        """The router gives the connection to this replica up."""
        if self._replica is replica:
            asyncio.get_running_loop().call_soon(self._take, _broken(), context=self._of_router)

    async def read(self) -> Any:
        while not self._arrived:
            self._news.clear()
            await self._news.wait()
        if isinstance(message := self._arrived.popleft(), grpc.aio.AioRpcError):
            raise message
        return message

    async def initial_metadata(self) -> Any:
        return ()

    async def trailing_metadata(self) -> Any:
        return ()

    def cancel(self) -> None:
        """The router wants no more of it, or is dead."""
        if self._replica is not None and self._work is not None:
            self._router.calls.pop(self, None)
            self._replica.calls.pop(self, None)
            self._work.cancel()

    def _send(self, message: Any) -> None:
        self._sent.append(message)
        asyncio.get_running_loop().call_later(self._seconds, self._arrive, context=self._of_router)

    def _arrive(self) -> None:
        if self._replica is not None and self._router.world.is_cut(self._router, self._replica):
            asyncio.get_running_loop().call_later(_RESEND_SECONDS, self._arrive, context=self._of_router)
        else:
            self._take(self._sent.popleft())

    def _take(self, message: Any) -> None:
        self._arrived.append(message)
        self._news.set()


class _NoRelay:
    """The answer of a replica that has no relay (`grpc.aio.StreamStreamCall`)."""

    async def write(self, message: object) -> None:
        raise _rpc_error(Unimplemented("no relay"))

    async def read(self) -> Any:
        raise _rpc_error(Unimplemented("no relay"))


def _broken() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "it broke")


def _rpc_error(error: Exception) -> grpc.aio.AioRpcError:
    """What a call gets that a server's interceptor ends with this error."""
    status = status_of(error)
    details = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(_CODES[status.code], grpc.aio.Metadata(), details, status.message)
