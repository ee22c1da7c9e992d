"""gRPC server metrics under their conventional names, and the endpoint that Prometheus scrapes."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_LABELS = ["grpc_type", "grpc_service", "grpc_method"]
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


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> MetricsServer:
    """Serve `registry` on a thread of its own, so that a busy event loop doesn't hide what it is busy with."""
    server, thread = start_http_server(port, addr=host, registry=registry)
    return MetricsServer(server, thread)
