"""The outermost interceptor of both servers: errors to statuses, request ids, one log line and the metrics of each call.

Handlers are coroutines or async generators that raise domain errors and know no status code. This module drives a generator itself
and closes it in the same task, however the call ends: left to gRPC, a cancel at a blocked `yield` would surface in another task.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2
from grpc_status import rpc_status

from shared import log as logs
from shared.errors import InvalidInput
from shared.rpc.errors import status_of
from shared.rpc.metrics import RpcMetrics

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_QUIET_SERVICES = ("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")


def request_id_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The id that the caller sent in `x-request-id`, if it is a decent one, or a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex


@dataclass
class CallCounter:
    """Calls that drain waits for: all but health checks, reflection and endless watches."""

    count: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    @contextmanager
    def counted(self) -> Any:
        self.count += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.count -= 1
            if self.count == 0:
                self.idle.set()


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # the stubs make it generic, grpcio does not
    """`endless` are full method names (`/package.Service/Method`) that end only with the client or the server."""

    def __init__(self, metrics: RpcMetrics, calls: CallCounter, endless: frozenset[str] = frozenset()) -> None:
        self._metrics, self._calls, self._endless = metrics, calls, endless

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # gRPC answers UNIMPLEMENTED itself
            return None
        kind, behaviour, wrap = _kind_of(handler)
        call = _Call(self._metrics, self._calls, handler_call_details.method, kind, handler_call_details.method in self._endless)

        async def respond(request: Any, context: Any) -> Any:
            with call.observed(context) as outcome:
                request = outcome.received_stream(request) if handler.request_streaming else request
                try:
                    _check_readable(request)
                    if handler.response_streaming:
                        await _drive(behaviour, request, context, outcome)
                        return None
                    return outcome.sent_one(await behaviour(request, context))
                except Exception as error:
                    await outcome.abort(error, context)

        return wrap(respond, request_deserializer=_reader(handler.request_deserializer), response_serializer=handler.response_serializer)


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a message that is not what the method takes: gRPC itself would answer UNKNOWN and tell the parser's name."""

    reason: str


def _reader(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data) if deserialize else data
        except DecodeError as error:
            return _Unreadable(str(error).rpartition(": ")[2])

    return read if deserialize else None


def _check_readable(request: Any) -> None:
    if isinstance(request, _Unreadable):
        raise InvalidInput.of("request", f"can't be read as the method's message: {request.reason[:200]}")


async def _drive(behaviour: Any, request: Any, context: Any, outcome: _Outcome) -> None:
    if not inspect.isasyncgenfunction(behaviour):  # writes to the context itself, as gRPC's own health service does
        await behaviour(request, context)
        return
    async with aclosing(behaviour(request, context)) as responses:
        async for response in responses:
            await context.write(response)
            outcome.sent_one(response)


def _kind_of(handler: Any) -> tuple[str, Any, Any]:
    if handler.request_streaming and handler.response_streaming:
        return "bidi_stream", handler.stream_stream, grpc.stream_stream_rpc_method_handler
    if handler.request_streaming:
        return "client_stream", handler.stream_unary, grpc.stream_unary_rpc_method_handler
    if handler.response_streaming:
        return "server_stream", handler.unary_stream, grpc.unary_stream_rpc_method_handler
    return "unary", handler.unary_unary, grpc.unary_unary_rpc_method_handler


class _Call:
    """What is the same for every call of one method."""

    def __init__(self, metrics: RpcMetrics, calls: CallCounter, method: str, kind: str, endless: bool) -> None:
        _, self.service, self.name = method.split("/")
        self._metrics, self._calls = metrics, calls
        self._labels = (kind, self.service, self.name)
        self._waited_for = not endless and self.service not in _QUIET_SERVICES

    @contextmanager
    def observed(self, context: Any) -> Any:
        outcome = _Outcome(self._metrics, self._labels)
        labels, metrics = self._labels, self._metrics
        begun = time.perf_counter()
        metrics.started.labels(*labels).inc()
        metrics.in_flight.labels(*labels).inc()
        counted = self._calls.counted() if self._waited_for else logs.bind()
        with counted, logs.bind(request_id=request_id_of(context)):
            try:
                yield outcome
            except asyncio.CancelledError:
                remaining = context.time_remaining()
                outcome.code = "DEADLINE_EXCEEDED" if remaining is not None and remaining <= 0 else "CANCELLED"
                raise
            finally:
                seconds = time.perf_counter() - begun
                metrics.in_flight.labels(*labels).dec()
                metrics.handled.labels(*labels, outcome.code).inc()
                metrics.seconds.labels(*labels).observe(seconds)
                level = logging.DEBUG if self.service in _QUIET_SERVICES else logging.INFO
                fields = {
                    "method": f"{self.service}/{self.name}",
                    "code": outcome.code,
                    "seconds": round(seconds, 4),
                    "peer": context.peer(),
                }
                log.log(level, "call", extra={"fields": fields})


class _Outcome:
    """How one call went so far."""

    def __init__(self, metrics: RpcMetrics, labels: tuple[str, str, str]) -> None:
        self.code = "OK"
        self._received = metrics.received.labels(*labels)
        self._sent = metrics.sent.labels(*labels)

    def sent_one(self, response: Any) -> Any:
        self._sent.inc()
        return response

    async def received_stream(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            self._received.inc()
            _check_readable(request)
            yield request

    async def abort(self, error: Exception, context: Any) -> None:
        if isinstance(error, grpc.aio.AbortError):  # gRPC's own services abort by themselves
            self.code = context.code().name if isinstance(context.code(), grpc.StatusCode) else "UNKNOWN"
            raise error
        if context.done():  # the client left while a message was being written
            self.code = "CANCELLED"
            return
        status = status_of(error)
        self.code = code_pb2.Code.Name(status.code)
        if status.code == code_pb2.INTERNAL:
            log.exception("unexpected error in a handler", exc_info=error)
        else:
            log.debug("refused: %s", status.message)
        await context.abort_with_status(rpc_status.to_status(status))
