"""The server's half of a relay: calls that arrive over one stream, and whose answers leave in common messages.

Each relayed call passes the interceptor of the server, as one that gRPC received: authentication, limits, metrics, log.
What a step of the engine produces for all callers of a router is one message here, which costs what one message of one
caller costs otherwise.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc
from grpc_status import rpc_status
from prompttuning.v1 import relay_pb2, relay_pb2_grpc

from shared.errors import InvalidInput, Overloaded, SoftPromptError, Unavailable, Unimplemented
from shared.rpc.errors import status_of
from shared.rpc.interceptors import CallInterceptor
from shared.rpc.relay_wire import (
    BATCH_BYTES,
    MAX_ACTIONS,
    MAX_CALLS,
    MAX_METADATA_BYTES,
    MAX_REQUEST_BYTES,
    Pairs,
    from_wire,
    metadata_bytes,
    to_wire,
)

_MAX_UNSENT_BYTES = 1 << 20
"""Unsent bytes of one relay at which its calls wait."""
_FRAMING_BYTES = 256
_TOGETHER = 100
"""Actions after which other work of the event loop has its turn."""
_MAX_RELAYS = 64
"""Relays of one server at a time: anybody can begin one. Routers without one send calls of their own."""

_Service = Callable[[Any], Any]


class RelayServicer(relay_pb2_grpc.RelayServiceServicer):
    """Relays the methods of `service`, a generic handler's `service`, through `interceptor`.

    `is_leaving`: whether new calls are refused because the server drains. `max_message_bytes`: of the server.
    """

    def __init__(
        self, interceptor: CallInterceptor, service: _Service, is_leaving: Callable[[], bool], max_message_bytes: int
    ) -> None:
        self._interceptor, self._service, self._is_leaving = interceptor, service, is_leaving
        self._max_bytes = max_message_bytes - _FRAMING_BYTES
        self._num_relays = 0

    async def Relay(  # type: ignore[override]  # it writes to the context
        self, requests: AsyncIterator[relay_pb2.RelayRequest], context: Any
    ) -> None:
        """Run the calls of one stream until the caller ends it and they have ended."""
        if self._num_relays >= _MAX_RELAYS:
            raise Overloaded(f"too many relays: {_MAX_RELAYS}", retry_after_seconds=1.0)
        self._num_relays += 1
        try:
            await self._relay(requests, _Outbox(context))
        finally:
            self._num_relays -= 1

    async def _relay(self, requests: AsyncIterator[relay_pb2.RelayRequest], outbox: _Outbox) -> None:
        calls = dict[int, _RelayedContext]()
        sending = asyncio.create_task(outbox.run())
        try:
            async with asyncio.TaskGroup() as running:
                async for request in requests:
                    if len(request.actions) > MAX_ACTIONS:
                        raise InvalidInput.of("actions", f"are more than {MAX_ACTIONS}")
                    for index, action in enumerate(request.actions, 1):
                        self._act(action, calls, outbox, running)
                        await outbox.room()
                        if index % _TOGETHER == 0:
                            await asyncio.sleep(0)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:  # a status can't be sent during a message, so the last one ends first
            outbox.close()
            await asyncio.gather(sending, return_exceptions=True)

    def _act(
        self,
        action: relay_pb2.RelayAction,
        calls: dict[int, _RelayedContext],
        outbox: _Outbox,
        running: asyncio.TaskGroup,
    ) -> None:
        kind, number = action.WhichOneof("action"), action.call
        call = calls.get(number)
        if kind == "begin":
            if call is not None:
                raise InvalidInput.of("actions.call", "is the number of a call that runs")
            refused = self._refusal(action, calls)
            if refused is not None:
                del action.begin.metadata[:]
            call = _RelayedContext(outbox, number, action.begin, self._max_bytes)
            if refused is not None:
                call.end(refused)
                return
            calls[number] = call
            call.task = running.create_task(self._run(call, action.begin))
            call.task.add_done_callback(partial(_forget, calls, number))
        elif call is not None and kind == "pause":
            call.pause(action.pause)
        elif call is not None and kind == "cancel":
            call.cancel()

    def _refusal(self, action: relay_pb2.RelayAction, calls: dict[int, _RelayedContext]) -> SoftPromptError | None:
        if metadata_bytes(action.begin.metadata) > MAX_METADATA_BYTES:
            return InvalidInput.of("actions.begin.metadata", f"has more than {MAX_METADATA_BYTES} bytes")
        if self._is_leaving():
            return Unavailable("the service is draining")
        if len(calls) >= MAX_CALLS:
            return Overloaded(f"too many calls in one relay: {MAX_CALLS}", retry_after_seconds=1.0)
        if len(action.begin.request) > MAX_REQUEST_BYTES:
            return InvalidInput.of("actions.begin.request", f"has more than {MAX_REQUEST_BYTES} bytes")
        return None

    async def _run(self, call: _RelayedContext, begin: relay_pb2.RelayBegin) -> None:
        try:
            handler = await self._interceptor.intercept_service(self._found, _Details(begin.method, call.metadata))
            if handler is None or not handler.response_streaming:
                call.end(Unimplemented("not a streaming method of this service"))
                return
            call.serialize = handler.response_serializer
            await handler.stream_stream(_only(handler.request_deserializer, begin.request), call)
            if call.cancelled():
                call.end_cancelled()
            else:
                call.end()
        except grpc.aio.AbortError:
            pass  # it has set the end
        except asyncio.CancelledError:
            if not call.cancelled():  # the relay itself is cancelled
                raise
            call.end_cancelled()

    async def _found(self, details: Any) -> Any:
        return self._service(details)


def _forget(calls: dict[int, _RelayedContext], number: int, _: asyncio.Task[None]) -> None:
    calls.pop(number).forget()


async def _only(deserialize: Callable[[bytes], Any] | None, request: bytes) -> AsyncGenerator[Any, None]:
    yield deserialize(request) if deserialize else request


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str, metadata: Pairs) -> None:
        self.method = method
        self.invocation_metadata: Any = metadata


class _Outbox:
    """The unsent answers of one relay."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self._answers, self._bytes, self._is_closed = deque[relay_pb2.RelayAnswer](), 0, False
        self._filled, self._sent = asyncio.Event(), asyncio.Event()

    def put(self, answer: relay_pb2.RelayAnswer) -> None:
        """Send an answer with the next message."""
        self._answers.append(answer)
        self._bytes += answer.ByteSize()
        self._filled.set()

    def close(self) -> None:
        """End `run` once everything is sent."""
        self._is_closed = True
        self._filled.set()

    async def room(self) -> None:
        """Wait while too much is unsent."""
        while self._bytes > _MAX_UNSENT_BYTES:
            self._sent.clear()
            await self._sent.wait()

    async def run(self) -> None:
        """Send what is put, with all that was put before in one message, until `close`."""
        await self.context.write(relay_pb2.RelayResponse())
        while self._answers or not self._is_closed:
            if not self._answers:
                self._filled.clear()
                await self._filled.wait()
                continue
            response, num_bytes = relay_pb2.RelayResponse(), 0
            while self._answers and (not num_bytes or num_bytes + self._answers[0].ByteSize() <= BATCH_BYTES):
                num_bytes += self._answers[0].ByteSize()
                response.answers.append(self._answers.popleft())
            await self.context.write(response)
            self._bytes -= num_bytes
            self._sent.set()


class _RelayedContext:
    """What the interceptor and the handlers use of gRPC's context, for one relayed call."""

    def __init__(self, outbox: _Outbox, number: int, begin: relay_pb2.RelayBegin, max_bytes: int) -> None:
        self._outbox, self._number, self._max_bytes = outbox, number, max_bytes
        self.metadata = from_wire(begin.metadata)
        self.serialize: Callable[[Any], bytes] | None = None
        self.task: asyncio.Task[None] | None = None
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._trailing: Pairs = ()
        self._code: grpc.StatusCode | None = None
        self._cancelled = False
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        if begin.HasField("timeout"):
            seconds = begin.timeout.ToNanoseconds() / 1e9
            self._deadline = time.monotonic() + seconds
            self._timer = asyncio.get_running_loop().call_later(seconds, self.cancel)

    def invocation_metadata(self) -> Pairs:
        """The caller's metadata."""
        return self.metadata

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def peer(self) -> str:
        """The relay's peer."""
        return str(self._outbox.context.peer())

    def auth_context(self) -> Any:
        """The relay's."""
        return self._outbox.context.auth_context()

    def code(self) -> grpc.StatusCode | None:
        """The status, once the call has ended."""
        return self._code

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._code is not None or self._cancelled

    def cancelled(self) -> bool:
        """Whether its caller or its deadline ended the call."""
        return self._cancelled

    def trailing_metadata(self) -> Pairs:
        """What was set."""
        return self._trailing

    def set_trailing_metadata(self, metadata: Pairs) -> None:
        """Send this with the end."""
        self._trailing = metadata

    async def send_initial_metadata(self, metadata: Pairs) -> None:
        """Send this before the first message."""
        self._outbox.put(relay_pb2.RelayAnswer(call=self._number, initial_metadata=to_wire(metadata)))

    async def write(self, message: Any) -> None:
        """Send a message. Waits while the caller or the relay does not take more."""
        data = self.serialize(message) if self.serialize else message
        if len(data) > self._max_bytes:
            await self.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the message is too large: {len(data)} bytes")
        await self._goes_on.wait()
        await self._outbox.room()
        self._outbox.put(relay_pb2.RelayAnswer(call=self._number, message=data))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Pairs = ()) -> None:
        """End the call with a status. Raises AbortError."""
        self._trailing = trailing_metadata or self._trailing
        self._end(code, details)
        raise grpc.aio.AbortError

    async def abort_with_status(self, status: Any) -> None:
        """As `abort`."""
        await self.abort(status.code, status.details, status.trailing_metadata)

    def pause(self, pause: bool) -> None:
        """Stop sending messages, or resume it."""
        (self._goes_on.clear if pause else self._goes_on.set)()

    def cancel(self) -> None:
        """End the call, for its caller or its deadline."""
        if not self.done() and self.task is not None:
            self._cancelled = True
            self.task.cancel()

    def end(self, error: SoftPromptError | None = None) -> None:
        """Send the end: OK, or the error's status."""
        if error is None:
            self._end(grpc.StatusCode.OK, "")
        else:
            status: Any = rpc_status.to_status(status_of(error))
            self._trailing = (*self._trailing, *status.trailing_metadata)
            self._end(status.code, status.details)

    def forget(self) -> None:
        """End what ended without a status: a task that was cancelled before it began, or with its relay."""
        if self._code is None:
            self.end_cancelled()

    def end_cancelled(self) -> None:
        """Send the end of a call that `cancel` ended."""
        is_late = self._deadline is not None and self._deadline <= time.monotonic()
        if is_late:
            self._end(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        else:
            self._end(grpc.StatusCode.CANCELLED, "")

    def _end(self, code: grpc.StatusCode, details: str) -> None:
        if self._code is None:
            self._code = code
            if self._timer is not None:
                self._timer.cancel()
            end = relay_pb2.RelayEnd(
                code=code.value[0], details=details, trailing_metadata=to_wire(self._trailing or ())
            )
            self._outbox.put(relay_pb2.RelayAnswer(call=self._number, end=end))
