"""The outermost interceptor of both servers: guard, error statuses, request ids, log line, metrics and span of a call.

Handlers are coroutines or async generators that raise domain errors and know no status codes. This module iterates
over a generator itself and closes it in the same task, however the call ends: if gRPC did it, a cancellation at a
blocked `yield` would appear in another task. Every method is registered with gRPC as taking a stream of requests, which
is the same on the wire. So callers are authenticated before their message is read, and calls whose request never
arrives time out.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
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
from shared.caller import Caller
from shared.errors import Overloaded, SoftPromptError
from shared.names import CALL_ID
from shared.rpc.calls import CallCounter
from shared.rpc.errors import status_of
from shared.rpc.guard import RELAY_SERVICE, AdmittedCall, Guard
from shared.rpc.messages import END, check_readable, first_of, heard_out, reader_of
from shared.rpc.metrics import RpcMetrics
from shared.rpc.tenant_metrics import TenantLabels, outcome_of_code
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
_QUIET_SERVICES = ("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", RELAY_SERVICE)


def request_id_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The id that the caller sent in `x-request-id` if it is well-formed, else a new id."""
    sent = _metadata(context, REQUEST_ID_KEY)
    return sent if CALL_ID.fullmatch(sent) else uuid.uuid4().hex


def _metadata(context: Any, wanted: str) -> str:
    return next(
        (value for key, value in context.invocation_metadata() or () if key == wanted and isinstance(value, str)), ""
    )


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler. `endless`: methods (`/package.Service/Method`) that end only with the client or server."""

    def __init__(
        self,
        metrics: RpcMetrics,
        calls: CallCounter,
        guard: Guard,
        tracing: Tracing,
        endless: frozenset[str] = frozenset(),
    ) -> None:
        self.metrics, self.calls, self.guard, self.tracing, self.endless = metrics, calls, guard, tracing, endless

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
        call = _Call(self, method, kind)

        async def respond(requests: Any, context: Any) -> Any:
            with call.observed(context) as outcome:
                try:
                    # Closed here because the garbage collector would keep the generator and its objects alive longer.
                    async with aclosing(aiter(requests)) as messages:
                        if not handler.request_streaming:
                            async with self.guard.admitted(method, context, outcome.identified) as outcome.admission:
                                return await answer(await outcome.received_one(messages), context, outcome)
                        async with (
                            heard_out(messages),
                            self.guard.admitted(method, context, outcome.identified) as outcome.admission,
                            aclosing(outcome.received_stream(messages)) as request,
                        ):
                            return await answer(request, context, outcome)
                except Exception as error:
                    await outcome.abort(error, context)

        async def answer(request: Any, context: Any, outcome: _Outcome) -> Any:
            with logs.bind(**outcome.about):
                if not handler.response_streaming:
                    return outcome.sent_one(await behaviour(request, context))
                work = _drive(behaviour, request, context, outcome)
                await (self.calls.until_over(work) if call.is_quiet else work)
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
    if not inspect.isasyncgenfunction(behaviour):  # the handler writes to the context, as the health service does
        await behaviour(request, context)
        return
    async with aclosing(behaviour(request, context)) as responses:
        async for response in responses:
            if outcome.answered_at is None and (labels := outcome.labels) != TenantLabels():
                await context.send_initial_metadata(labels.metadata)  # a stream that is cut has no trailing metadata
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
    """Observes the calls of one method: metrics, span, log line."""

    def __init__(self, server: CallInterceptor, method: str, kind: str) -> None:
        _, self.service, self.name = method.split("/")
        self._server = server
        self._labels = (kind, self.service, self.name)
        self.is_quiet = self.service in _QUIET_SERVICES
        self._waited_for = method not in server.endless and not self.is_quiet
        self._attributes = {"rpc.system": "grpc", "rpc.service": self.service, "rpc.method": self.name}

    @contextmanager
    def observed(self, context: Any) -> Any:
        """Observe one call inside the `with` block, which may set the status code of the yielded outcome."""
        labels, metrics = self._labels, self._server.metrics
        outcome = _Outcome(metrics, labels, self._server.guard, context)
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
                if self._waited_for:  # a watch says nothing about latency
                    first = outcome.answered_at if labels[0] in ("server_stream", "bidi_stream") else None
                    until_first = None if first is None else first - begun
                    metrics.tenants.observe(outcome.labels, outcome_of_code(outcome.code), seconds, until_first)
                self._report(outcome, span, seconds, context)

    def _counted(self) -> AbstractContextManager[None]:
        if self._waited_for:
            return self._server.calls.counted()
        if (self.service, self.name) == ("grpc.health.v1.Health", "Watch"):
            return self._server.calls.watching_health()
        return nullcontext()

    def _traced(self, context: Any) -> AbstractContextManager[Span]:
        if self.is_quiet:
            return nullcontext(INVALID_SPAN)
        parent = parent_of(_metadata(context, TRACE_KEY), _metadata(context, STATE_KEY))
        return self._server.tracing.span(f"{self.service}/{self.name}", parent, SpanKind.SERVER, self._attributes)

    def _report(self, outcome: _Outcome, span: Span, seconds: float, context: Any) -> None:
        about = outcome.about
        attributes = {
            "rpc.grpc.status_code": code_pb2.Code.Value(outcome.code),
            **{f"softprompt.{key}": value for key, value in about.items()},
        }
        span.set_attributes(attributes)
        if outcome.code not in ("OK", "CANCELLED"):
            span.set_status(StatusCode.ERROR, outcome.code)
        level = logging.DEBUG if self.is_quiet else logging.INFO
        fields = {
            "method": f"{self.service}/{self.name}",
            "code": outcome.code,
            "seconds": round(seconds, 4),
            "peer": context.peer(),
            **about,
        }
        log.log(level, "call", extra={"fields": fields})


def _ids(request_id: str, span: Span) -> dict[str, object]:
    trace_id = trace_id_of(span)
    return {"request_id": request_id, "trace_id": trace_id} if trace_id else {"request_id": request_id}


class _Outcome:
    """State of one call: its status code, its admission, and counters of its messages."""

    def __init__(self, metrics: RpcMetrics, labels: tuple[str, str, str], guard: Guard, context: Any) -> None:
        self.code = "OK"
        self.admission: AdmittedCall | None = None
        self.answered_at: float | None = None
        """Time of the first response, on the clock of `perf_counter`."""
        self._guard, self._context = guard, context
        self._caller: Caller | None = None
        self._refused: dict[str, str] = {}
        self._received = metrics.received.labels(*labels)
        self._sent = metrics.sent.labels(*labels)

    @property
    def about(self) -> dict[str, str]:
        """The caller and what the call is about, as far as known, for log and span."""
        return {"caller": self.admission.caller.name, **self.admission.about} if self.admission else self._refused

    @property
    def labels(self) -> TenantLabels:
        """The call's tenant and prompt class: by the guard, or behind a router what a service answered."""
        prompt = self.admission.about.get("prompt", "") if self.admission else ""
        known = self._guard.labels_of(self._caller, prompt)
        return TenantLabels.read(self._context.trailing_metadata()) if known is None else known

    def identified(self, caller: Caller) -> None:
        """Note the caller. The answer names its tenant, which a router or a gateway counts by."""
        self._caller = caller
        self._context.set_trailing_metadata(self.labels.metadata)

    def sent_one(self, response: Any) -> Any:
        """Count and charge a response, and return it."""
        self._sent.inc()
        self.answered_at = self.answered_at or time.perf_counter()
        if self.admission is not None:
            self.admission.sent(response)
        return response

    async def received_one(self, requests: AsyncIterator[Any]) -> Any:
        """The request of a method that takes one request."""
        return self._taken(await first_of(requests))

    async def received_stream(self, requests: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """The requests of a method that takes a stream."""
        request = await first_of(requests, may_be_none=True)
        while request is not END:
            yield self._taken(request)
            request = await anext(requests, END)

    def _taken(self, request: Any) -> Any:
        self._received.inc()
        check_readable(request)
        if self.admission is not None:
            self.admission.received(request)
            if self._caller is not None and self.admission.about.get("prompt"):
                self._context.set_trailing_metadata(self.labels.metadata)
        return request

    async def abort(self, error: Exception, context: Any) -> None:
        """End the call with the status for the error."""
        if isinstance(error, grpc.aio.AbortError):  # gRPC's own services call `context.abort`
            self.code = context.code().name if isinstance(context.code(), grpc.StatusCode) else "UNKNOWN"
            raise error
        if isinstance(error, grpc.aio.InternalError):  # a write failed; gRPC is about to cancel this task
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
        answer: Any = rpc_status.to_status(status)  # a named tuple; the stubs don't know that
        if isinstance(error, SoftPromptError) and "caller" in error.metadata:
            self._refused = {"caller": error.metadata["caller"]}
        if (labels := self.labels) != TenantLabels():
            answer = answer._replace(trailing_metadata=(*answer.trailing_metadata, *labels.metadata))
        if isinstance(error, Overloaded):
            answer = answer._replace(trailing_metadata=(*answer.trailing_metadata, (PUSHBACK_KEY, _pushback(error))))
        await context.abort_with_status(answer)


def _pushback(error: Overloaded) -> str:
    """Milliseconds until gRPC's automatic retry; -1 (gRFC A6) if the wait is long or a budget is used up."""
    seconds = error.retry_after_seconds
    return "-1" if error.is_of_budget or seconds > _MAX_PUSHBACK_SECONDS else str(int(1000 * seconds))
