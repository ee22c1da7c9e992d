"""Metrics of the gateway. Labels are bounded: operations of the API, statuses, tenants, never callers or models."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from shared.rpc.tenant_metrics import TenantMetrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_LOOP_SECONDS = 5.0
DISCONNECTED = 499
"""Status of a request whose client left, as nginx has it. It is never sent."""

FAULTS = ("500", "503", "504")
"""Statuses of requests that failed because of the gateway or a service."""


class GatewayMetrics:
    """Requests by operation (by status, in flight, seconds until the first byte and the end), and by tenant."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry, self.tenants = registry, TenantMetrics(registry)
        about = "Requests by status; 499: the client left."
        self.handled = Counter("softprompt_gateway_requests", about, ["operation", "status"], registry=registry)
        self.in_flight = Gauge("softprompt_gateway_requests_in_flight", "Requests that run now.", registry=registry)
        times = partial(Histogram, labelnames=["operation"], registry=registry, buckets=_SECONDS)
        self.first_byte = times("softprompt_gateway_first_byte_seconds", "Time until the response began.")
        self.seconds = times("softprompt_gateway_request_seconds", "Time until the response ended.")
        self.ready = Gauge("softprompt_gateway_ready", "1 while the gateway takes requests.", registry=registry)

    def expect(self, operations: Iterable[str]) -> None:
        """Export the counters of faults with 0: `rate` sees nothing of a series that begins with its first event."""
        for operation in operations:
            for status in FAULTS:
                self.handled.labels(operation, status)


class Probes:
    """The application of the metrics port: `/metrics`, `/livez` (the event loop answers), `/readyz`."""

    def __init__(self, metrics: GatewayMetrics, loop: asyncio.AbstractEventLoop) -> None:
        self._metrics, self._loop = make_wsgi_app(metrics.registry), loop
        self.is_ready = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/livez":
            return _answer(self._loop_answers(), start_response)
        if path == "/readyz":
            return _answer(self.is_ready, start_response)
        application: WSGIApplication = self._metrics
        return application(environ, start_response)

    def _loop_answers(self) -> bool:
        answered: concurrent.futures.Future[None] = concurrent.futures.Future()
        try:
            self._loop.call_soon_threadsafe(answered.set_result, None)
            answered.result(_LOOP_SECONDS)
        except (TimeoutError, RuntimeError):  # RuntimeError: the loop is closed
            return False
        return True


def _answer(good: bool, start_response: StartResponse) -> Iterable[bytes]:
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return [b"ok\n" if good else b"no\n"]
