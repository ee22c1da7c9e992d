"""gRPC server metrics with their conventional names, and the endpoint that Prometheus scrapes.

py-grpc-prometheus has the same names, but its interceptor does not work with grpc.aio.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from google.protobuf import descriptor_pool
from google.rpc import code_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared import invariants
from shared.process.call_pool import CallPool
from shared.rpc.errors import CODES
from shared.rpc.ports import check_port
from shared.rpc.tenant_metrics import TenantMetrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

_LABELS = ["grpc_type", "grpc_service", "grpc_method"]
_KINDS = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}
"""The `grpc_type` label by (client streams, server streams)."""
_CODES = tuple(code_pb2.Code.Name(code) for code in sorted({code_pb2.OK, code_pb2.INTERNAL, *CODES.values()}))
"""Status codes that the methods of the services can end with."""
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

_MAX_CONNECTIONS, _MAX_CONNECTIONS_OF_ADDRESS = 64, 4
"""Connections to the metrics port: in total, and from one address."""
_MAX_SHARE, _MAX_REST_SECONDS = 0.2, 1.0
"""Largest fraction of the time that is spent on scrapes, and the longest pause after one."""


class RpcMetrics:
    """Counts calls of each method (started, in flight, handled by code), their messages and seconds, also by tenant."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry, self.tenants = registry, TenantMetrics(registry)
        self.started = Counter("grpc_server_started", "RPCs started.", _LABELS, registry=registry)
        self.handled = Counter(
            "grpc_server_handled", "RPCs completed, by status code.", [*_LABELS, "grpc_code"], registry=registry
        )
        self.received = Counter("grpc_server_msg_received", "Messages received.", _LABELS, registry=registry)
        self.sent = Counter("grpc_server_msg_sent", "Messages sent.", _LABELS, registry=registry)
        self.in_flight = Gauge("grpc_server_in_flight", "RPCs that run now.", _LABELS, registry=registry)
        self.seconds = Histogram(
            "grpc_server_handling_seconds", "Time that RPCs took.", _LABELS, registry=registry, buckets=_SECONDS
        )
        registry.register(_InvariantCollector())

    def expect(self, service_names: Sequence[str]) -> None:
        """Export 0 for every method and code: Prometheus sees no increase in a series whose first value is 1."""
        for service_name in service_names:
            for method in descriptor_pool.Default().FindServiceByName(service_name).methods:
                kind = _KINDS[method.client_streaming, method.server_streaming]
                for code in _CODES:
                    self.handled.labels(kind, service_name, method.name, code)


class _InvariantCollector(Collector):
    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "softprompt_invariants_broken", "Checks that found an invariant broken.", labels=["invariant"]
        )
        for invariant, number in invariants.num_broken().items():
            family.add_metric([invariant.value], number)
        yield family


class PoolCollector(Collector):
    """Exports the statistics of call pools at the time of a scrape. The label `system` is the pool's name."""

    def __init__(self, pools: Sequence[CallPool]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        """The series as they are now."""
        in_flight = GaugeMetricFamily("softprompt_outside_calls_in_flight", "Calls that run now.", labels=["system"])
        overdue = GaugeMetricFamily(
            "softprompt_outside_calls_overdue",
            "Calls in flight that have exceeded their time limit.",
            labels=["system"],
        )
        timed_out = CounterMetricFamily(
            "softprompt_outside_calls_timed_out", "Calls not answered in time.", labels=["system"]
        )
        refused = CounterMetricFamily(
            "softprompt_outside_calls_refused", "Calls refused because all threads hang.", labels=["system"]
        )
        for stats in (pool.stats() for pool in self._pools):
            in_flight.add_metric([stats.system], stats.in_flight)
            overdue.add_metric([stats.system], stats.overdue)
            timed_out.add_metric([stats.system], stats.timed_out)
            refused.add_metric([stats.system], stats.refused)
        yield from (in_flight, overdue, timed_out, refused)


@dataclass(frozen=True)
class MetricsServer:
    """The running endpoint: `GET /metrics` on `port`."""

    server: WSGIServer
    thread: threading.Thread

    @property
    def port(self) -> int:
        """The port that was bound."""
        return int(self.server.server_port)

    def close(self) -> None:
        """Stop serving and wait for the server's thread."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds; each idle connection occupies a thread

    def log_message(self, format: str, *args: object) -> None:
        """Does nothing: scrapes are not logged."""


class _Server(ThreadingMixIn, WSGIServer):
    """Serves a limited number of connections, each in a thread.

    Only the newest few connections from one address are kept, so that slow clients close each other's connections and
    not Prometheus's.
    """

    daemon_threads = True
    request_queue_size = 128  # Python's default of 5 lets a few clients keep others from connecting

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._open: dict[socket.socket, str] = {}
        """Client addresses by connection, oldest connection first."""
        self._lock = threading.Lock()
        super().__init__(*arguments, **options)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the connection gets a thread; if necessary, shuts down older ones from the same address.

        A connection that was shut down counts until its thread has ended.
        """
        with self._lock:
            same = [connection for connection, address in self._open.items() if address == client_address[0]]
            if len(self._open) >= _MAX_CONNECTIONS or len(same) >= 2 * _MAX_CONNECTIONS_OF_ADDRESS:
                return False
            self._open[request] = client_address[0]
            for connection in same[: len(same) + 1 - _MAX_CONNECTIONS_OF_ADDRESS]:
                with suppress(OSError):  # already shut down, or closed by its client
                    connection.shutdown(socket.SHUT_RDWR)
        return True

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log errors of a connection at debug level only: clients disconnect and are shut down all the time."""
        log.debug("a scrape failed", exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Paced:
    """A WSGI application that answers one request at a time and pauses after each, to limit the load from scrapes.

    Prometheus scrapes seconds apart and never has to wait.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self._application, self._lock, self._next = application, threading.Lock(), 0.0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with self._lock:
            time.sleep(max(0.0, self._next - time.monotonic()))
            begun = time.monotonic()
            try:
                return self._application(environ, start_response)
            finally:
                ended = time.monotonic()
                self._next = ended + min(_MAX_REST_SECONDS, (ended - begun) * (1 / _MAX_SHARE - 1))


def serve_metrics(
    registry: CollectorRegistry, host: str, port: int, application: WSGIApplication | None = None
) -> MetricsServer:
    """Serve `registry` in a separate thread, so that metrics are available while the event loop is busy.

    `application` has more than the metrics, which it serves itself. Raises OSError if the port can't be used.
    """
    check_port(host, port, "metrics")
    server_class = _Server6 if ":" in host else _Server
    server = make_server(
        host.strip("[]"), port, _Paced(application or make_wsgi_app(registry)), server_class, handler_class=_Handler
    )
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return MetricsServer(server, thread)
