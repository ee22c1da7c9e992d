"""Services of a server that listens before they exist: their methods answer UNAVAILABLE until they are added.

So a process whose database or store is away at its start tells probes that it lives, and callers to try again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from shared.errors import Unavailable


class LateServices(grpc.GenericRpcHandler):
    """Services whose handlers are registered after the server has started.

    Add it to a server before the start; later, pass it in place of the server to the generated `add_..._to_server`.
    """

    def __init__(self, service_names: Sequence[str], message: str) -> None:
        """`service_names` are full names; `message` is what callers are told meanwhile."""
        self._prefixes = tuple(f"/{name}/" for name in service_names)
        self._message = message
        self._handlers: tuple[grpc.GenericRpcHandler, ...] = ()

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._handlers += tuple(handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Only another way to find the same handlers."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        for handler in self._handlers:
            if (found := handler.service(handler_call_details)) is not None:
                return found
        if handler_call_details.method.startswith(self._prefixes) and not self._handlers:
            return grpc.stream_unary_rpc_method_handler(
                self._refuse, request_deserializer=bytes, response_serializer=bytes
            )
        return None

    async def _refuse(self, requests: Any, context: Any) -> bytes:
        raise Unavailable(self._message)
