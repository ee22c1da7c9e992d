"""The two channels, their stubs, the default deadline, and the one place where a failed call becomes a domain error."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TypeVar

import grpc
from prompttuning.v1 import generation_pb2_grpc, prompts_pb2_grpc, tuning_pb2_grpc

from shared.rpc.errors import error_from_rpc
from softprompt.client.channel import open_channel

T = TypeVar("T")

DEFAULT_TRAINER, DEFAULT_INFERENCE = "127.0.0.1:50051", "127.0.0.1:50052"
TRAINER_VARIABLE, INFERENCE_VARIABLE = "SOFTPROMPT_TRAINER", "SOFTPROMPT_INFERENCE"


@contextmanager
def domain_errors() -> Iterator[None]:
    """Failed calls leave as `shared.errors` exceptions."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error


class Connection:
    """Channels open on first use, so a client may be made outside an event loop, and needs only the service that it calls."""

    def __init__(self, trainer: str | None, inference: str | None, timeout_seconds: float) -> None:
        self.trainer_endpoint = trainer or os.environ.get(TRAINER_VARIABLE) or DEFAULT_TRAINER
        self.inference_endpoint = inference or os.environ.get(INFERENCE_VARIABLE) or DEFAULT_INFERENCE
        self.timeout_seconds = timeout_seconds
        self._channels: list[grpc.aio.Channel] = []

    @cached_property
    def tuning(self) -> tuning_pb2_grpc.TuningServiceAsyncStub:
        return tuning_pb2_grpc.TuningServiceStub(self._trainer_channel)

    @cached_property
    def prompts(self) -> prompts_pb2_grpc.PromptServiceAsyncStub:
        return prompts_pb2_grpc.PromptServiceStub(self._trainer_channel)

    @cached_property
    def generation(self) -> generation_pb2_grpc.GenerationServiceAsyncStub:
        return generation_pb2_grpc.GenerationServiceStub(self._open(self.inference_endpoint))

    async def call(self, method: Callable[..., Awaitable[T]], request: object, timeout_seconds: float | None = None) -> T:
        """One call with a single response and a deadline."""
        with domain_errors():
            return await method(request, timeout=self.timeout_seconds if timeout_seconds is None else timeout_seconds)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)
        self._channels.clear()

    @cached_property
    def _trainer_channel(self) -> grpc.aio.Channel:
        return self._open(self.trainer_endpoint)

    def _open(self, endpoint: str) -> grpc.aio.Channel:
        channel = open_channel(endpoint)
        self._channels.append(channel)
        return channel
