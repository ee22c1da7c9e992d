"""The gateway as a process: HTTP server, TLS, readiness, metrics, drain.

Start: metrics and probes, then HTTP; ready once the inference service has answered. It stays ready when a service goes
away later: callers then get 503 and a delay instead of a closed port. Stop: not ready, no new connections, running
streams finish within the grace time, or are cut.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, Gauge
from starlette.types import ASGIApp

from shared.errors import Overloaded, PermissionDenied, SoftPromptError, Unauthenticated
from shared.loopback import is_loopback
from shared.process.daemon_thread import close_within
from shared.process.service import announce, retract
from shared.rpc.metrics import serve_metrics
from shared.rpc.ports import check_port
from shared.security.certificates import CertificateReader, TlsFiles
from shared.tracing import tracing_of
from softprompt.client.security import ClientSecurity
from softprompt.gateway.app import OPERATIONS, create_app
from softprompt.gateway.backend import Backend
from softprompt.gateway.exchange import Exchange
from softprompt.gateway.metrics import GatewayMetrics, Probes
from softprompt.gateway.protocol import HEAD_BYTES, TimedProtocol
from softprompt.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

_PROBE_SECONDS = 0.5
_TLS_LOOK_SECONDS = 30.0
_FAREWELL_SECONDS = 2.0


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers; `run_service` has them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: GatewaySettings, stop: asyncio.Event, security: ClientSecurity | None = None) -> None:
    """Run until `stop`, then drain. `security`: towards the services; None: the environment's. Raises start errors."""
    retract(settings)
    registry = CollectorRegistry()
    metrics, tracing = GatewayMetrics(registry), tracing_of("softprompt-gateway", settings.otlp_endpoint)
    metrics.expect(OPERATIONS)
    probes = Probes(metrics, asyncio.get_running_loop())
    backend = Backend(settings, security)
    app = create_app(settings, backend, probes)
    tls = None if settings.is_plaintext else _Tls(settings, registry)
    listener = _listener(settings)
    only_local = is_loopback(settings.host)
    server = _Server(_config(settings, Exchange(app, backend, metrics, tracing, only_local), tls))
    metrics_server = serve_metrics(registry, settings.host, settings.metrics_port, probes)
    port = listener.getsockname()[1]
    log.info("listening", extra={"fields": {"port": port, "metrics_port": metrics_server.port}})
    if settings.plaintext:
        log.warning("PLAINTEXT: all traffic, including tokens, can be read and changed on the network")
    serving = asyncio.create_task(server.serve([listener]))
    opening = asyncio.create_task(_open(settings, backend, metrics, probes, port, metrics_server.port))
    renewing = asyncio.create_task(_renew(tls))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        retract(settings)
        probes.is_ready = False
        metrics.ready.set(0)
        opening.cancel()
        server.should_exit = True
        await serving
    finally:
        for task in (serving, opening, renewing, stopping):
            task.cancel()
        await asyncio.gather(serving, opening, renewing, stopping, return_exceptions=True)
        await backend.close()
        listener.close()
        await close_within(_FAREWELL_SECONDS, metrics_server.close, "metrics")
        await close_within(_FAREWELL_SECONDS, tracing.close, "tracing")


def _config(settings: GatewaySettings, app: ASGIApp, tls: _Tls | None) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # clients can cause its warnings at will
    context = None if tls is None else tls.context
    return uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
        h11_max_incomplete_event_size=HEAD_BYTES,
        ssl_context_factory=None if context is None else lambda config, default: context,
    )


def _listener(settings: GatewaySettings) -> socket.socket:
    """The bound socket. Raises OSError with one sentence."""
    check_port(settings.host, settings.port)
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, settings.port))
    return listener


class _NewestContext(ssl.SSLContext):
    """Makes each connection from the newest context. A resumed session is not verified again, and a context resumes
    only its own sessions, so sessions end with the context that verified them.
    """

    newest: ssl.SSLContext

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        return self.newest.wrap_bio(*arguments, **named)


class _Tls:
    """Keeps the TLS context up to date. New handshakes use the newest certificate and client CA; open connections keep
    theirs.
    """

    def __init__(self, settings: GatewaySettings, registry: CollectorRegistry) -> None:
        authority = Path(settings.tls_client_ca_file) if settings.tls_client_ca_file else None
        self._files = TlsFiles(Path(settings.tls_certificate_file), Path(settings.tls_key_file), authority)
        series = "softprompt_tls_certificate_expiry_timestamp_seconds"
        expiry = Gauge(series, "When the served certificate expires.", registry=registry)
        self._reader = CertificateReader(self._files, lambda material: expiry.set(material.expires.timestamp()))
        self.context = _NewestContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.newest = self._loaded()

    def renew(self) -> None:
        """Load the files again if they have changed and are valid."""
        if self._reader.renewed() is not None:
            self.context.newest = self._loaded()

    def _loaded(self) -> ssl.SSLContext:
        """A context of the files. A new one each time: a context keeps every CA that it has loaded."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._files.client_ca is not None:
            context.load_verify_locations(self._files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self._files.certificate, self._files.key)
        return context


async def _renew(tls: _Tls | None) -> None:
    while tls is not None:
        await asyncio.sleep(_TLS_LOOK_SECONDS)
        try:
            tls.renew()
        except OSError as error:  # also OpenSSL's
            log.error("the renewed TLS files can't be used; keeping the previous ones: %s", error)


async def _open(
    settings: GatewaySettings, backend: Backend, metrics: GatewayMetrics, probes: Probes, port: int, metrics_port: int
) -> None:
    """Report ready once the inference service answers anything."""
    reason = ""
    while True:
        try:
            await backend.client.model_info()
        except (Unauthenticated, PermissionDenied, Overloaded) as error:  # it answers, if only to ask who calls
            log.debug("the inference service answers: %s", error.message)
        except SoftPromptError as error:
            if error.message != reason:
                log.warning("waiting for the inference service: %s", error.message)
            reason = error.message
            await asyncio.sleep(_PROBE_SECONDS)
            continue
        break
    probes.is_ready = True
    metrics.ready.set(1)
    announce(settings, port, metrics_port)
