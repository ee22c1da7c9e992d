"""gRPC server metrics under their conventional names, and the endpoint that Prometheus scrapes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from google.protobuf import descriptor_pool
from google.rpc import code_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.process.call_pool import CallPool
from shared.rpc.errors import CODES
from shared.rpc.ports import check_port

_LABELS = ["grpc_type", "grpc_service", "grpc_method"]
_KINDS = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}
"""The `grpc_type` label by (client streams, server streams)."""
_CODES = tuple(code_pb2.Code.Name(code) for code in sorted({code_pb2.OK, code_pb2.INTERNAL, *CODES.values()}))
"""Status codes that the services' own methods can end with."""
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class RpcMetrics:
    """Started, handled (by code), in flight, messages and handling seconds of every method."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.started = Counter("grpc_server_started", "RPCs started.", _LABELS, registry=registry)
        self.handled = Counter("grpc_server_handled", "RPCs completed, by status code.", [*_LABELS, "grpc_code"], registry=registry)
        self.received = Counter("grpc_server_msg_received", "Messages received.", _LABELS, registry=registry)
        self.sent = Counter("grpc_server_msg_sent", "Messages sent.", _LABELS, registry=registry)
        self.in_flight = Gauge("grpc_server_in_flight", "RPCs that run now.", _LABELS, registry=registry)
        self.seconds = Histogram("grpc_server_handling_seconds", "Time that RPCs took.", _LABELS, registry=registry, buckets=_SECONDS)

    def expect(self, service_names: Sequence[str]) -> None:
        """Export every method and status code of these services as 0: Prometheus sees no increase in a series that begins with 1."""
        for service_name in service_names:
            for method in descriptor_pool.Default().FindServiceByName(service_name).methods:
                kind = _KINDS[method.client_streaming, method.server_streaming]
                for code in _CODES:
                    self.handled.labels(kind, service_name, method.name, code)


class PoolCollector(Collector):
    """Calls to outside systems, at the time of a scrape. The label `system` is the pool's name."""

    def __init__(self, pools: Sequence[CallPool]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily("softprompt_outside_calls_in_flight", "Calls that run now.", labels=["system"])
        overdue = GaugeMetricFamily("softprompt_outside_calls_overdue", "Of these, calls beyond their time limit.", labels=["system"])
        timed_out = CounterMetricFamily("softprompt_outside_calls_timed_out", "Calls not answered in time.", labels=["system"])
        refused = CounterMetricFamily("softprompt_outside_calls_refused", "Calls refused since all threads hang.", labels=["system"])
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
        return int(self.server.server_port)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(WSGIRequestHandler):
    timeout = 10  # of a connection that says nothing: each one holds a thread

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> MetricsServer:
    """Serve `registry` on a thread of its own, so that a busy event loop doesn't hide what it is busy with. Raises OSError."""
    check_port(host, port, "metrics")
    server_class = _Server6 if ":" in host else _Server
    server = make_server(host.strip("[]"), port, make_wsgi_app(registry), server_class, handler_class=_Handler)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return MetricsServer(server, thread)
