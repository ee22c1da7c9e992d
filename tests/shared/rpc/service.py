"""A small GenerationService behind the real server, for tests of the interceptors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from prompttuning.v1 import generation_pb2, generation_pb2_grpc

from shared.config import ServerSettings
from shared.errors import InvalidInput
from shared.rpc.errors import error_from_rpc
from shared.rpc.metrics import RpcMetrics
from shared.rpc.server import RpcServer
from shared.tracing import Tracing

SERVICE = "prompttuning.v1.GenerationService"


@dataclass
class Servicer(generation_pb2_grpc.GenerationServiceServicer):
    """Answers according to the text of the request; records the streams that were closed."""

    closed: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    running: asyncio.Event = field(default_factory=asyncio.Event)
    metadata: dict[str, str] = field(default_factory=dict)
    """Of the last CountTokens."""
    whole: bool = False
    """Whether streams have a start and an end."""

    async def CountTokens(self, request: Any, context: Any) -> Any:
        self.metadata = dict(context.invocation_metadata())
        if request.input.text == "bad":
            raise InvalidInput.of("input.text", "is bad")
        if request.input.text == "bug":
            raise RuntimeError("secret of the house")
        return generation_pb2.CountTokensResponse(input_tokens=1)

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        return generation_pb2.GetModelInfoResponse()

    async def Generate(self, request: Any, context: Any) -> Any:
        end = generation_pb2.GenerationEnd(output_tokens=90)
        start = generation_pb2.GenerationStart(version="prompts/tone/versions/3", input_tokens=10)
        return generation_pb2.GenerateResponse(start=start, end=end)

    async def GenerateStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            if self.whole:
                yield generation_pb2.GenerateStreamResponse(start=generation_pb2.GenerationStart())
            yield generation_pb2.GenerateStreamResponse(
                delta=generation_pb2.GenerationDelta(text="first", token_ids=[1])
            )
            self.running.set()
            await self.release.wait()
            yield generation_pb2.GenerateStreamResponse(
                delta=generation_pb2.GenerationDelta(text="last", token_ids=[2])
            )
            if self.whole:
                yield generation_pb2.GenerateStreamResponse(end=generation_pb2.GenerationEnd())
        finally:
            self.closed.set()


@dataclass
class Running:
    server: RpcServer
    servicer: Servicer
    registry: CollectorRegistry
    port: int
    channel: Any  # `grpc.aio.Channel`, whose stubs know no calls of plain bytes
    stub: Any


@asynccontextmanager
async def running_server(tracing: Tracing | None = None, **settings: Any) -> AsyncIterator[Running]:
    """Runs until the block ends; `channel` is a plaintext channel."""
    registry = CollectorRegistry()
    server = RpcServer(ServerSettings(**settings), [SERVICE], RpcMetrics(registry), tracing=tracing)
    servicer = Servicer()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server.grpc_server)
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Running(server, servicer, registry, port, channel, generation_pb2_grpc.GenerationServiceStub(channel))
    finally:
        await server.drain(0)


def count_request(text: str = "", prompt: str = "") -> Any:
    return generation_pb2.CountTokensRequest(input=generation_pb2.GenerationInput(text=text, prompt=prompt))


async def refusal(call: Any) -> Any:
    """The domain error that a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)
    raise AssertionError("the call was not refused")
