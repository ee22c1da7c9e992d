"""A grpc.aio server with health, reflection, metrics and a drain that lets running calls finish.

Health services: "" and each service's full name (for load balancers and clients), `live` (the process answers) and `ready` (it can
serve), apart, so that Kubernetes restarts only what is really stuck.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shared.config import ServerSettings
from shared.rpc.interceptors import CallCounter, CallInterceptor
from shared.rpc.metrics import RpcMetrics

log = logging.getLogger(__name__)

LIVE, READY = "live", "ready"
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class RpcServer:
    """Add servicers to `grpc_server`, then `start`, then `set_serving(True)` when the service really can serve.

    `service_names` are the full names of the services added (for health and reflection); `endless` are full method names of watches
    that end when `draining` is set (their handlers wait on it).
    """

    def __init__(
        self, settings: ServerSettings, service_names: Sequence[str], metrics: RpcMetrics, endless: frozenset[str] = frozenset()
    ) -> None:
        self._settings = settings
        self._calls = CallCounter()
        self.draining = asyncio.Event()
        self.grpc_server = grpc.aio.server(
            interceptors=[CallInterceptor(metrics, self._calls, endless)],
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a load balancer
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
            ],
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._watched = ("", READY, *service_names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc_server)
        reflection.enable_server_reflection((*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME), self.grpc_server)

    async def start(self) -> int:
        """Listen; the port that was bound. Everything but `live` is NOT_SERVING until `set_serving`. Raises OSError if it is taken."""
        await self._health.set(LIVE, _SERVING)
        await self.set_serving(False)
        address = f"{self._settings.host}:{self._settings.port}"
        try:
            port = self.grpc_server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is another program using this port?") from error
        await self.grpc_server.start()
        return port

    async def set_serving(self, serving: bool) -> None:
        for name in self._watched:
            await self._health.set(name, _SERVING if serving else _NOT_SERVING)

    async def drain(self, grace_seconds: float) -> None:
        """Say NOT_SERVING, end the watches, let running calls finish for up to `grace_seconds`, cut what is left."""
        if not self.draining.is_set():
            self.draining.set()
            await self._health.enter_graceful_shutdown()
        try:
            async with asyncio.timeout(grace_seconds):
                await self._calls.idle.wait()
        except TimeoutError:
            log.warning("grace time is over", extra={"fields": {"calls_cut": self._calls.count}})
        await self.grpc_server.stop(grace=0.5)
