"""gRPC's health service (grpc.health.v1), in which no client can delay other clients or the server.

grpcio's asyncio servicer writes to watching clients while it holds the lock that a change of status needs. One client
that does not read its stream then keeps the server from reporting NOT_SERVING and from draining.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_NOT_SERVING, _UNKNOWN = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Holds and reports the status of each health service. Use it in the event loop's thread."""

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
            changed, status = self._changed, self._statuses.get(request.service, _UNKNOWN)
            if status != written:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                written = status
            await changed.wait()
