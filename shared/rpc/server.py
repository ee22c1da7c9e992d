"""A grpc.aio server with health, reflection, metrics, and a drain that lets running calls finish.

Health services: "" and each service's full name (for load balancers and clients), `live` (the process answers) and
`ready` (it can serve). `live` and `ready` are separate so that Kubernetes restarts only processes that are stuck.

Each new TLS handshake uses the newest certificate; open connections keep theirs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, Gauge
from prompttuning.v1 import relay_pb2_grpc

from shared.config import RpcSettings
from shared.loopback import is_loopback
from shared.rpc.calls import CallCounter
from shared.rpc.guard import HEALTH_SERVICE, PassingGuard, guard_of
from shared.rpc.interceptors import CallInterceptor
from shared.rpc.late import LateServices
from shared.rpc.metrics import RpcMetrics
from shared.rpc.ports import check_port
from shared.rpc.relay import RelayServicer
from shared.security.certificates import CertificateReader, TlsFiles, TlsMaterial
from shared.tracing import Tracing

log = logging.getLogger(__name__)

LIVE, READY = "live", "ready"
HANDSHAKE_SECONDS = 10.0
_MAX_CONNECTION_STREAMS = 2048
_MAX_HEALTH_STREAMS = 16
"""Concurrent calls of one connection to the health port."""

_LEAVING_SECONDS = 1.0
"""Time for clients that watch health to switch to other replicas, at the start of a drain."""


_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Holds and reports the status of each health service. Use it in the event loop's thread.

    grpcio's asyncio servicer writes to watching clients while it holds the lock that a change of status needs. One
    client that does not read its stream then keeps the server from reporting NOT_SERVING and from draining.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._is_leaving = False

    def set(self, service: str, status: int) -> None:
        """Set the status of a health service. Has no effect after `leave`."""
        if not self._is_leaving:
            self._statuses[service] = status
            self._notify()

    def leave(self) -> None:
        """Set all services to NOT_SERVING for good."""
        self._is_leaving = True
        self._statuses = dict.fromkeys(self._statuses, _NOT_SERVING)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such health service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:
        """Write the status now and after each change. A client that reads slowly misses intermediate statuses."""
        written = None
        while True:
            changed, status = (
                self._changed,
                self._statuses.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN),
            )
            if status != written:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                written = status
            await changed.wait()


def server_credentials(files: TlsFiles, metrics: CollectorRegistry | None = None) -> grpc.ServerCredentials:
    """Credentials that follow the files. Raises ConfigError if the files are invalid now; later errors are logged."""
    expiry = Gauge(
        "softprompt_tls_certificate_expiry_timestamp_seconds", "When the served certificate expires.", registry=metrics
    )
    reader = CertificateReader(files, lambda material: expiry.set(material.expires.timestamp()))

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        material = reader.renewed()
        return None if material is None else _configuration(material)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(reader.material),
        renewed,  # type: ignore[arg-type]  # the stubs don't know that None means unchanged
        require_client_authentication=files.client_ca is not None,
    )


def _configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.client_ca)


class RpcServer:
    """The gRPC server of a service.

    Add servicers to `grpc_server`, then `start`, then `set_serving(True)` when the service can serve. `service_names`
    are the full names of the services added (for health and reflection). `endless` are full method names of watches
    whose handlers wait for `draining` and then end. `systems` are names of external systems; each gets a health
    service that reports whether the system answers.
    """

    def __init__(
        self,
        settings: RpcSettings,
        service_names: Sequence[str],
        metrics: RpcMetrics,
        endless: frozenset[str] = frozenset(),
        tracing: Tracing | None = None,
        systems: Sequence[str] = (),
    ) -> None:
        """Raises ConfigError for an invalid callers file or invalid TLS files."""
        logging.getLogger("grpc._cython.cygrpc").addFilter(_shows_no_metadata)
        self._settings = settings
        self._calls = CallCounter()
        self.draining = asyncio.Event()
        metrics.expect(service_names)
        self.guard = guard_of(settings, metrics.registry)
        self._credentials = _credentials_of(settings, metrics)
        self.interceptor = CallInterceptor(metrics, self._calls, self.guard, tracing or Tracing(), endless)
        self.grpc_server = grpc.aio.server(
            interceptors=[self.interceptor],
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                *_connection_options(),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.max_connection_age_ms", int(1000 * settings.max_connection_age_seconds)),
                ("grpc.max_connection_age_grace_ms", 3_600_000),
                ("grpc.max_concurrent_streams", _MAX_CONNECTION_STREAMS),
                # With gRPC's default of 1000, calls of a burst end as CANCELLED.
                ("grpc.server.max_pending_requests", 2 * _MAX_CONNECTION_STREAMS),
                ("grpc.server.max_pending_requests_hard_limit", 4 * _MAX_CONNECTION_STREAMS),
            ],
        )
        self._health = HealthServicer()
        self._watched = ("", READY, *service_names, *systems)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc_server)
        if settings.reflection_access != "off":
            reflection.enable_server_reflection(
                (*service_names, HEALTH_SERVICE, reflection.SERVICE_NAME), self.grpc_server
            )
        self.health_port: int | None = None
        self._health_server: grpc.aio.Server | None = None

    def relay(self, add: Callable[[Any], None]) -> None:
        """Also serve a relay of the service that `add` adds to a server."""
        service = LateServices((), "")
        add(service)
        servicer = RelayServicer(
            self.interceptor, service.service, self.draining.is_set, self._settings.max_message_bytes
        )
        relay_pb2_grpc.add_RelayServiceServicer_to_server(servicer, self.grpc_server)

    async def start(self) -> int:
        """Start to listen and return the port. All health services but `live` are NOT_SERVING until `set_serving`.

        Raises OSError if the port can't be used.
        """
        self._health.set(LIVE, _SERVING)
        await self.set_serving(False)
        port = self._listen(self.grpc_server, self._settings.port, self._credentials)
        if self._settings.health_port is not None:
            self._health_server = grpc.aio.server(
                options=[
                    *_connection_options(),
                    ("grpc.max_receive_message_length", 4096),
                    ("grpc.max_concurrent_streams", _MAX_HEALTH_STREAMS),
                ]
            )
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_server)
            self.health_port = self._listen(self._health_server, self._settings.health_port, None)
            await self._health_server.start()
        self._warn()
        await self.grpc_server.start()
        return port

    def _listen(self, server: grpc.aio.Server, port: int, credentials: grpc.ServerCredentials | None) -> int:
        address = f"{self._settings.host}:{port}"
        check_port(self._settings.host, port)
        try:
            return (
                server.add_insecure_port(address)
                if credentials is None
                else server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error

    def _warn(self) -> None:
        """Log insecure settings, once, at the start."""
        is_local = is_loopback(self._settings.host)
        if self._credentials is None and (self._settings.plaintext or not is_local):
            log.warning("PLAINTEXT: all traffic, including tokens, can be read and changed on the network")
        elif self._credentials is None:
            log.info("plaintext, on loopback only: no other machine can reach this service")
        passes_on = isinstance(self.guard, PassingGuard)
        if not (is_local or passes_on or self.guard.asks or self._settings.tls_client_ca_file):
            log.warning("NO AUTHENTICATION: everyone who can reach this port has all permissions; set a callers file")

    async def set_serving(self, serving: bool, exceptions: Mapping[str, bool] | None = None) -> None:
        """Set the status of all health services but `live`. `exceptions`: services with another status, by name."""
        for name in self._watched:
            self._health.set(name, _SERVING if (exceptions or {}).get(name, serving) else _NOT_SERVING)

    async def run_until(
        self, stop: asyncio.Event, life: Coroutine[Any, Any, None], leaving: Callable[[], object]
    ) -> None:
        """Run `life` until it ends or `stop` is set, then call `leaving`, drain, and cancel it. Raises its error."""
        running, stopping = asyncio.create_task(life), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            started = time.monotonic()
            leaving()
            await self.drain(self._settings.grace_seconds if stop.is_set() else 0.0)
            log.info("drained", extra={"fields": {"seconds": round(time.monotonic() - started, 3)}})
        finally:
            stopping.cancel()
            running.cancel()
            (outcome, _) = await asyncio.gather(running, stopping, return_exceptions=True)
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome

    async def drain(self, grace_seconds: float) -> None:
        """Report NOT_SERVING, take no new calls, end the watches, and let running calls finish.

        Calls that still run after `grace_seconds` are cut. Clients that watch health first get a moment to leave. Then
        all connections get a GOAWAY, so that clients send new calls elsewhere. gRPC ends calls that cross with the
        GOAWAY as CANCELLED or UNAVAILABLE, and clients repeat them.
        """
        if not self.draining.is_set():
            self.draining.set()
            self._health.leave()
            if self._calls.count or self._calls.health_watches:
                await asyncio.sleep(min(_LEAVING_SECONDS, grace_seconds / 10))
        stopping = asyncio.create_task(self.grpc_server.stop(grace_seconds))  # only once: a second stop crashes gRPC
        try:
            async with asyncio.timeout(grace_seconds):
                await self._calls.idle.wait()
        except TimeoutError:
            log.warning("grace time is over", extra={"fields": {"calls_cut": self._calls.count}})
        self._calls.over.set()
        await stopping
        await self.guard.close()
        if self._health_server is not None:
            await self._health_server.stop(grace=0)


def _shows_no_metadata(record: logging.LogRecord) -> bool:
    """Whether to keep a record of gRPC's logger: not if it shows a metadata value that is not UTF-8.

    gRPC logs such values with tracebacks. Any caller could fill the log, and the value may be a token.
    """
    return not str(record.msg).startswith("Invalid encoding on")


def _connection_options() -> tuple[tuple[str, int], ...]:
    """Options of the servers on all ports."""
    return (
        ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a load balancer
        ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE_SECONDS)),  # closes silent connections
        ("grpc.max_connection_idle_ms", 300_000),
    )


def _credentials_of(settings: RpcSettings, metrics: RpcMetrics) -> grpc.ServerCredentials | None:
    """TLS credentials from the settings; None: plaintext."""
    if settings.is_plaintext:
        return None
    client_ca = Path(settings.tls_client_ca_file) if settings.tls_client_ca_file else None
    files = TlsFiles(Path(settings.tls_certificate_file), Path(settings.tls_key_file), client_ca)
    return server_credentials(files, metrics.registry)
