"""gRPC's health service (grpc.health.v1), in which no client can delay another one or the server.

grpcio's own asyncio servicer writes to a watching client while it holds the lock that changes of the status need: one
client that does not read its stream keeps the server from ever saying NOT_SERVING, and from draining.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_NOT_SERVING, _UNKNOWN = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The status of each health service. For the event loop's thread."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._is_leaving = False

    def set(self, service: str, status: int) -> None:
        """Has no effect after `leave`."""
        if not self._is_leaving:
            self._statuses[service] = status
            self._tell()

    def leave(self) -> None:
        """Everything is NOT_SERVING from now on."""
        self._is_leaving = True
        self._statuses = dict.fromkeys(self._statuses, _NOT_SERVING)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such health service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:
        """Writes the status now and after each change; a client that reads slowly misses what lay between."""
        written = None
        while True:
            changed, status = self._changed, self._statuses.get(request.service, _UNKNOWN)
            if status != written:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                written = status
            await changed.wait()
