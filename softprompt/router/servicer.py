"""GenerationService of the router: each call is passed on as bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
from prompttuning.v1 import generation_pb2

from shared.errors import Overloaded, Unauthenticated
from shared.log import bound_fields
from shared.rpc.tenant_metrics import TenantLabels
from shared.trace_context import trace_headers
from softprompt.routing.ask import ROUTED_KEY, Call
from softprompt.routing.links import STREAMING
from softprompt.routing.overview import OVERVIEWS
from softprompt.routing.routing import Routing, loop_error

_SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
SERVICE_NAME = _SERVICE.full_name
_RETRY_SECONDS = 1.0


class RouterServicer:
    """Hands each call to `routing`. `has_certificate`: whether the router has one; replicas would then take callers
    without a token for the router.
    """

    def __init__(self, routing: Routing, has_certificate: bool, max_bytes: int) -> None:
        """`max_bytes`: of the requests of all calls together; one alone may have any size."""
        self._routing, self._has_certificate = routing, has_certificate
        self._max_bytes, self._held_bytes = max_bytes, 0

    def handler(self) -> grpc.GenericRpcHandler:
        """The methods of the service, for messages as bytes."""
        methods = {method.name: self._method(method.name) for method in _SERVICE.methods}
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    def _method(self, name: str) -> Any:
        async def unary(request: bytes, context: Any) -> bytes:
            call = self._call(name, request, context)
            overview = OVERVIEWS.get(name)
            try:
                with self._held(call):
                    return await (self._routing.unary(call) if overview is None else overview(self._routing, call))
            except grpc.aio.AioRpcError as error:
                await _abort(error, context)
                raise

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            call = self._call(name, request, context)
            try:
                with self._held(call):
                    async with aclosing(self._routing.stream(call)) as responses:
                        async for response in responses:
                            yield response
            except grpc.aio.AioRpcError as error:
                await _abort(error, context)

        if name == STREAMING:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    @contextmanager
    def _held(self, call: Call) -> Iterator[None]:
        """Count the bytes of a call's request inside the `with` block. Raises Overloaded if there are too many."""
        num_bytes = len(call.request)
        if self._held_bytes and self._held_bytes + num_bytes > self._max_bytes:
            text = f"the router is full: the requests of its calls have {self._held_bytes} bytes"
            raise Overloaded(text, retry_after_seconds=_RETRY_SECONDS)
        self._held_bytes += num_bytes
        try:
            yield
        finally:
            self._held_bytes -= num_bytes

    def _call(self, name: str, request: bytes, context: Any) -> Call:
        """What to pass on of a call: its token, its request id, its trace and its deadline."""
        given = [(key, value) for key, value in context.invocation_metadata() or () if isinstance(value, str)]
        if any(key == ROUTED_KEY for key, _ in given):
            raise loop_error()
        tokens = [(key, value) for key, value in given if key == "authorization"]
        if self._has_certificate and not tokens:
            raise Unauthenticated("no credentials: send the metadata `authorization: Bearer TOKEN`")
        request_id = str(bound_fields().get("request_id", ""))
        metadata = (*tokens, ("x-request-id", request_id), *trace_headers().items())
        return Call(name, request, metadata, context.time_remaining(), lambda found: _name_tenant(found, context))


async def _abort(error: grpc.aio.AioRpcError, context: Any) -> None:
    """End the call with the replica's status and details, by raising gRPC's exception for it."""
    _name_tenant(error.trailing_metadata(), context)
    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))


def _name_tenant(metadata: Any, context: Any) -> None:
    """Answer with the tenant and prompt class that the replica named, which the router's metrics have, too."""
    if (labels := TenantLabels.read(metadata)) != TenantLabels():
        context.set_trailing_metadata(labels.metadata)
