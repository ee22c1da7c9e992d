"""What all requests have in common: id, trace, token, metrics, log line, origin, and the end when the client leaves."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from opentelemetry.trace import SpanKind
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import log as logs
from shared.errors import Unauthenticated
from shared.loopback import is_loopback
from shared.names import CALL_ID
from shared.rpc.tenant_metrics import TenantLabels, outcome_of_status
from shared.trace_context import parent_of, trace_id_of
from shared.tracing import Tracing
from softprompt.client.calls import LatestAnswer
from softprompt.gateway.backend import Backend
from softprompt.gateway.errors import ApiError, api_error
from softprompt.gateway.metrics import DISCONNECTED, GatewayMetrics
from softprompt.gateway.protocol import HEAD_BYTES

log = logging.getLogger(__name__)

_MAX_TRACE_CHARS = 512
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_QUIET = ("/livez", "/readyz")
_OTHER = "other"
"""Operation of a request that no endpoint handled."""


class Exchange:
    """The outermost layer around the routes. `only_local`: whether only this machine can reach the gateway."""

    def __init__(
        self, app: ASGIApp, backend: Backend, metrics: GatewayMetrics, tracing: Tracing, only_local: bool
    ) -> None:
        self._app, self._backend, self._metrics, self._tracing = app, backend, metrics, tracing
        self._only_local = only_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sent_id = headers.get("x-request-id", "")
        request_id = sent_id if CALL_ID.fullmatch(sent_id) else uuid.uuid4().hex
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"], state["operation"] = request_id, _OTHER
        parent = parent_of(*(headers.get(name, "")[:_MAX_TRACE_CHARS] for name in ("traceparent", "tracestate")))
        attributes = {"http.request.method": scope["method"]}
        response, latest = _Response(send, request_id), LatestAnswer()
        with (
            self._metrics.in_flight.track_inprogress(),
            self._tracing.span("HTTP request", parent, SpanKind.SERVER, attributes) as span,
            logs.bind(request_id=request_id, **({"trace_id": found} if (found := trace_id_of(span)) else {})),
        ):
            try:
                await self._handle(scope, headers, receive, response, latest)
            except Exception as error:  # of a download that has begun: its connection is closed
                state["failed"] = api_error(error).status
                raise
            finally:
                response.status = state.get("failed", response.status)
                span.update_name(state["operation"])
                span.set_attribute("http.response.status_code", response.status)
                self._report(scope, state["operation"], response)
                if state["operation"] != _OTHER:
                    await self._count(response, latest)

    async def _handle(
        self, scope: Scope, headers: Headers, receive: Receive, response: _Response, latest: LatestAnswer
    ) -> None:
        try:
            _check_head(scope, headers)
            self._check_origin(scope["method"], headers)
            with self._backend.acting_for(headers.getlist("authorization"), response.request_id, latest):
                await _until_disconnected(self._app, scope, receive, response)
        except (ApiError, Unauthenticated) as error:
            await api_error(error).response()(scope, receive, response)

    def _check_origin(self, method: str, headers: Headers) -> None:
        """Refuses what a page of another site has a browser send, which would reach a gateway that asks for no token;
        on a loopback address also host names that only seem to be of this machine (DNS rebinding).
        """
        host = headers.get("host", "")
        if self._only_local and not is_loopback(_host_name(host)):
            raise ApiError(421, "this gateway serves this machine only, as localhost or 127.0.0.1", code="wrong_host")
        if method in _SAFE_METHODS:
            return
        site, origin = headers.get("sec-fetch-site", ""), headers.get("origin", "")
        if site in ("cross-site", "same-site") or (not site and origin and origin.partition("://")[2] != host):
            raise ApiError(403, "pages of other sites may not call this gateway", code="cross_origin")

    async def _count(self, response: _Response, latest: LatestAnswer) -> None:
        """Count the request for the tenant that a service named."""
        labels = TenantLabels.read(await latest.metadata())
        first = response.started - response.begun if response.started is not None and response.is_streamed else None
        seconds = time.perf_counter() - response.begun
        self._metrics.tenants.observe(labels, outcome_of_status(response.status), seconds, first)

    def _report(self, scope: Scope, operation: str, response: _Response) -> None:
        metrics, seconds = self._metrics, time.perf_counter() - response.begun
        metrics.handled.labels(operation, str(response.status)).inc()
        metrics.seconds.labels(operation).observe(seconds)
        if response.started is not None:
            metrics.first_byte.labels(operation).observe(response.started - response.begun)
        client = scope.get("client")
        fields = {
            "operation": operation,
            "method": scope["method"],
            "status": response.status,
            "seconds": round(seconds, 4),
            "peer": client[0] if client else "",
        }
        log.log(logging.DEBUG if scope["path"] in _QUIET else logging.INFO, "request", extra={"fields": fields})


class _Response:
    """`send` of one request: adds headers, and notes times and the status, which may be that of a later error."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self.request_id = send, request_id
        self.begun = time.perf_counter()
        self.started: float | None = None
        self.status, self.is_streamed = DISCONNECTED, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = time.perf_counter(), message["status"]
            added = [(b"x-request-id", self.request_id.encode()), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        self.is_streamed = self.is_streamed or bool(message.get("more_body"))
        await self._send(message)


async def _until_disconnected(app: ASGIApp, scope: Scope, receive: Receive, response: _Response) -> None:
    """Run the application; cancel it when the client leaves, and with it its calls to the services."""
    arrived: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
    has_left = False

    async def listen() -> None:
        nonlocal has_left
        while (message := await receive())["type"] != "http.disconnect":
            await arrived.put(message)
        has_left = True
        working.cancel()

    working = asyncio.ensure_future(app(scope, arrived.get, response))
    listening = asyncio.create_task(listen())
    try:
        await working
    except asyncio.CancelledError:
        if not has_left:
            working.cancel()
            await asyncio.wait({working})
            raise
        response.status = DISCONNECTED
    finally:
        listening.cancel()


def _check_head(scope: Scope, headers: Headers) -> None:
    """Refuses large heads, since uvicorn limits only what it has to wait for and not what arrives at once; and bodies
    with two lengths, by which a proxy could take a part of the body for the next request (RFC 9112, section 6.1).
    """
    size = len(scope["raw_path"]) + len(scope["query_string"])
    if size + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > HEAD_BYTES:
        raise ApiError(431, f"the request's head has more than {HEAD_BYTES} bytes", code="head_too_large")
    if "content-length" in headers and "transfer-encoding" in headers:
        text = "Content-Length and Transfer-Encoding exclude each other"
        raise ApiError(400, text, code="ambiguous_length", headers={"Connection": "close"})


def _host_name(host: str) -> str:
    """The host without the port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
