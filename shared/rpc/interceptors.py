"""The outermost interceptor of both servers: the guard, errors to statuses, request ids, one log line, metrics and span
of each call.

Handlers are coroutines or async generators that raise domain errors and know no status code. This module drives a
generator itself and closes it in the same task, however the call ends: left to gRPC, a cancel at a blocked `yield`
would surface in another task. To gRPC every method takes a stream of requests (on the wire that is the same): so a
caller is known before its message is read, and one that opens a call and never sends its request is given up.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from typing import Any

import grpc
from google.rpc import code_pb2
from grpc_status import rpc_status
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode

from shared import log as logs
from shared.errors import Overloaded, SoftPromptError
from shared.rpc.calls import CallCounter
from shared.rpc.errors import status_of
from shared.rpc.guard import Admission, Guard
from shared.rpc.messages import END, check_readable, first_of, heard_out, reader_of
from shared.rpc.metrics import RpcMetrics
from shared.trace_context import parent_of, trace_id_of
from shared.tracing import Tracing

log = logging.getLogger(__name__)

REQUEST_ID_KEY, TRACE_KEY, STATE_KEY, PUSHBACK_KEY = (
    "x-request-id",
    "traceparent",
    "tracestate",
    "grpc-retry-pushback-ms",
)
_MAX_PUSHBACK_SECONDS = 10.0
_CANCEL_SECONDS = 1.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_QUIET_SERVICES = ("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")


def request_id_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The id that the caller sent in `x-request-id`, if it is a decent one, or a new one."""
    sent = _metadata(context, REQUEST_ID_KEY)
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


def _metadata(context: Any, wanted: str) -> str:
    return next(
        (value for key, value in context.invocation_metadata() or () if key == wanted and isinstance(value, str)), ""
    )


class CallInterceptor(grpc.aio.ServerInterceptor):
    """`endless` are full method names (`/package.Service/Method`) that end only with the client or the server."""

    def __init__(
        self,
        metrics: RpcMetrics,
        calls: CallCounter,
        guard: Guard,
        tracing: Tracing,
        endless: frozenset[str] = frozenset(),
    ) -> None:
        self._metrics, self._calls, self._guard, self._tracing, self._endless = metrics, calls, guard, tracing, endless

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # gRPC answers UNIMPLEMENTED itself
            return None
        kind, behaviour = _kind_of(handler)
        method = handler_call_details.method
        call = _Call(self._metrics, self._calls, self._tracing, method, kind, method in self._endless)

        async def respond(requests: Any, context: Any) -> Any:
            with call.observed(context) as outcome:
                try:
                    # Closed here: a generator that is left to the garbage collector outlives it by a round, with all
                    # that it holds.
                    async with aclosing(aiter(requests)) as messages:
                        if not handler.request_streaming:
                            async with self._guard.admitted(method, context) as outcome.admission:
                                return await answer(await outcome.received_one(messages), context, outcome)
                        async with (
                            heard_out(messages),
                            self._guard.admitted(method, context) as outcome.admission,
                            aclosing(outcome.received_stream(messages)) as request,
                        ):
                            return await answer(request, context, outcome)
                except Exception as error:
                    await outcome.abort(error, context)

        async def answer(request: Any, context: Any, outcome: _Outcome) -> Any:
            with logs.bind(**outcome.who):
                if not handler.response_streaming:
                    return outcome.sent_one(await behaviour(request, context))
                work = _drive(behaviour, request, context, outcome)
                await (self._calls.until_over(work) if call.is_quiet else work)
                return None

        wrap: Any = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return wrap(
            respond,
            request_deserializer=reader_of(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


async def _drive(behaviour: Any, request: Any, context: Any, outcome: _Outcome) -> None:
    if not inspect.isasyncgenfunction(behaviour):  # writes to the context itself, as the health service does
        await behaviour(request, context)
        return
    async with aclosing(behaviour(request, context)) as responses:
        async for response in responses:
            await context.write(response)
            outcome.sent_one(response)


def _kind_of(handler: Any) -> tuple[str, Any]:
    if handler.request_streaming and handler.response_streaming:
        return "bidi_stream", handler.stream_stream
    if handler.request_streaming:
        return "client_stream", handler.stream_unary
    if handler.response_streaming:
        return "server_stream", handler.unary_stream
    return "unary", handler.unary_unary


class _Call:
    """What is the same for every call of one method."""

    def __init__(
        self, metrics: RpcMetrics, calls: CallCounter, tracing: Tracing, method: str, kind: str, endless: bool
    ) -> None:
        _, self.service, self.name = method.split("/")
        self._metrics, self._calls, self._tracing = metrics, calls, tracing
        self._labels = (kind, self.service, self.name)
        self.is_quiet = self.service in _QUIET_SERVICES
        self._waited_for = not endless and not self.is_quiet
        self._attributes = {"rpc.system": "grpc", "rpc.service": self.service, "rpc.method": self.name}

    @contextmanager
    def observed(self, context: Any) -> Any:
        outcome = _Outcome(self._metrics, self._labels)
        labels, metrics = self._labels, self._metrics
        begun = time.perf_counter()
        metrics.started.labels(*labels).inc()
        metrics.in_flight.labels(*labels).inc()
        counted = self._counted()
        with counted, self._traced(context) as span, logs.bind(**_ids(request_id_of(context), span)):
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
                exemplar = {"trace_id": trace_id_of(span)} if span.is_recording() else None
                metrics.seconds.labels(*labels).observe(seconds, exemplar)
                self._tell(outcome, span, seconds, context)

    def _counted(self) -> AbstractContextManager[None]:
        if self._waited_for:
            return self._calls.counted()
        if (self.service, self.name) == ("grpc.health.v1.Health", "Watch"):
            return self._calls.watching_health()
        return nullcontext()

    def _traced(self, context: Any) -> AbstractContextManager[Span]:
        if self.is_quiet:
            return nullcontext(INVALID_SPAN)
        parent = parent_of(_metadata(context, TRACE_KEY), _metadata(context, STATE_KEY))
        return self._tracing.span(f"{self.service}/{self.name}", parent, SpanKind.SERVER, self._attributes)

    def _tell(self, outcome: _Outcome, span: Span, seconds: float, context: Any) -> None:
        who = outcome.who
        about = {
            "rpc.grpc.status_code": code_pb2.Code.Value(outcome.code),
            **{f"softprompt.{key}": value for key, value in who.items()},
        }
        span.set_attributes(about)
        if outcome.code not in ("OK", "CANCELLED"):
            span.set_status(StatusCode.ERROR, outcome.code)
        level = logging.DEBUG if self.is_quiet else logging.INFO
        fields = {
            "method": f"{self.service}/{self.name}",
            "code": outcome.code,
            "seconds": round(seconds, 4),
            "peer": context.peer(),
            **who,
        }
        log.log(level, "call", extra={"fields": fields})


def _ids(request_id: str, span: Span) -> dict[str, object]:
    trace_id = trace_id_of(span)
    return {"request_id": request_id, "trace_id": trace_id} if trace_id else {"request_id": request_id}


class _Outcome:
    """How one call went so far."""

    def __init__(self, metrics: RpcMetrics, labels: tuple[str, str, str]) -> None:
        self.code = "OK"
        self.admission: Admission | None = None
        self._refused: dict[str, str] = {}
        self._received = metrics.received.labels(*labels)
        self._sent = metrics.sent.labels(*labels)

    @property
    def who(self) -> dict[str, str]:
        return {"caller": self.admission.caller.name, **self.admission.about} if self.admission else self._refused

    def sent_one(self, response: Any) -> Any:
        self._sent.inc()
        if self.admission is not None:
            self.admission.sent(response)
        return response

    async def received_one(self, requests: AsyncIterator[Any]) -> Any:
        """The message of a method that takes one."""
        return self._taken(await first_of(requests))

    async def received_stream(self, requests: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        request = await first_of(requests, may_be_none=True)
        while request is not END:
            yield self._taken(request)
            request = await anext(requests, END)

    def _taken(self, request: Any) -> Any:
        self._received.inc()
        check_readable(request)
        if self.admission is not None:
            self.admission.received(request)
        return request

    async def abort(self, error: Exception, context: Any) -> None:
        if isinstance(error, grpc.aio.AbortError):  # gRPC's own services abort by themselves
            self.code = context.code().name if isinstance(context.code(), grpc.StatusCode) else "UNKNOWN"
            raise error
        if isinstance(error, grpc.aio.InternalError):  # a write failed; gRPC cancels this task as soon as it knows why
            await asyncio.sleep(_CANCEL_SECONDS)
        if context.done():  # the client left while a message was being written
            self.code = "CANCELLED"
            return
        status = status_of(error)
        self.code = code_pb2.Code.Name(status.code)
        if status.code == code_pb2.INTERNAL:
            log.exception("unexpected error in a handler", exc_info=error)
        else:
            log.debug("refused: %s", status.message)
        answer: Any = rpc_status.to_status(status)  # a named tuple, which the stubs don't say
        if isinstance(error, SoftPromptError) and "caller" in error.metadata:
            self._refused = {"caller": error.metadata["caller"]}
        if isinstance(error, Overloaded):
            answer = answer._replace(trailing_metadata=(*answer.trailing_metadata, (PUSHBACK_KEY, _pushback(error))))
        await context.abort_with_status(answer)


def _pushback(error: Overloaded) -> str:
    """When gRPC's own retries may come again; -1 stops them where waiting is the caller's decision (gRFC A6)."""
    seconds = error.retry_after_seconds
    return str(int(1000 * seconds)) if seconds <= _MAX_PUSHBACK_SECONDS else "-1"
