"""Addresses, channels and stubs of both services, default deadlines, and domain errors for failed calls."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message
from prompttuning.v1 import generation_pb2_grpc, prompts_pb2_grpc, tuning_pb2_grpc

from shared.errors import DeadlineExceeded, InvalidInput, SoftPromptError, Unavailable, Unimplemented
from shared.process.proxies import grpc_proxy
from shared.rpc.errors import error_from_rpc
from shared.wire.mirror import read
from softprompt.client.channel import open_channel
from softprompt.client.routed_channel import SCHEME, RoutedChannel
from softprompt.client.security import (
    CA_VARIABLE,
    CERTIFICATE_VARIABLE,
    TLS_VARIABLE,
    ClientSecurity,
    hosts_of,
    is_local,
)
from softprompt.endpoints import (
    DEFAULT_INFERENCE_PORT,
    DEFAULT_TRAINER_PORT,
    check_endpoint,
    inference_endpoint,
    trainer_endpoint,
)
from softprompt.routing.routing import said_by_service

T = TypeVar("T")
PAGE_SIZE = 200


@dataclass(frozen=True)
class Kind:
    """One of the two services. `option` names its address in errors; every release of it answers `known_method`."""

    name: str
    option: str
    port: int
    known_method: str


TRAINER = Kind("the trainer", "trainer", DEFAULT_TRAINER_PORT, "/prompttuning.v1.TuningService/GetServiceInfo")
INFERENCE = Kind(
    "the inference service", "inference", DEFAULT_INFERENCE_PORT, "/prompttuning.v1.GenerationService/GetModelInfo"
)


class Peer:
    """One service at one address. Its channel opens on first use, in the event loop that uses it."""

    def __init__(
        self, kind: Kind, endpoint: str, timeout_seconds: float, security: ClientSecurity, retry_overloaded: bool
    ) -> None:
        self._kind, self.endpoint, self.timeout_seconds, self._security = kind, endpoint, timeout_seconds, security
        self._retry_overloaded = retry_overloaded

    @property
    def name(self) -> str:
        """For error texts: "the trainer"."""
        return self._kind.name

    @property
    def _is_routed(self) -> bool:
        """Whether the address is a prompt store, and calls go to the replicas that it names."""
        return self._kind is INFERENCE and self.endpoint.startswith(SCHEME)

    @cached_property
    def channel(self) -> grpc.aio.Channel:
        """Raises InvalidInput for an address or TLS files that can't be used."""
        if self._is_routed:
            routed = RoutedChannel(self.endpoint.removeprefix(SCHEME), self._security, self._retry_overloaded)
            return cast("grpc.aio.Channel", routed)
        check_endpoint(self.endpoint, self._kind.option, self._kind.port)
        return cast("grpc.aio.Channel", open_channel(self.endpoint, self._security, self._retry_overloaded))

    async def call(
        self, method: Callable[..., Awaitable[T]], request: object, timeout_seconds: float | None = None
    ) -> T:
        """One call with a single response and a deadline."""
        async with self.errors():
            return await method(request, timeout=self.timeout_seconds if timeout_seconds is None else timeout_seconds)

    @asynccontextmanager
    async def errors(self) -> AsyncIterator[None]:
        """Failed calls leave as `shared.errors` exceptions."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise await self.explained(error) from error

    async def explained(self, error: grpc.aio.AioRpcError) -> SoftPromptError:
        """`domain_error`, or InvalidInput where the address turns out to be that of another service."""
        found = self.domain_error(error)
        if not isinstance(found, Unimplemented) or said_by_service(error):
            return found
        if await self._answers(self._kind.known_method):
            return found
        other = INFERENCE if self._kind is TRAINER else TRAINER
        if await self._answers(other.known_method):
            advice = f"are the addresses of {TRAINER.option} and {INFERENCE.option} swapped?"
            return InvalidInput.of(self._kind.option, f"{self.endpoint} is {other.name} and not {self.name}: {advice}")
        return InvalidInput.of(self._kind.option, f"{self.endpoint} is a gRPC service, but not {self.name}")

    async def _answers(self, method: str) -> bool:
        """Whether the service has a method. True, too, if that can't be found out now."""
        try:
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(method, None, None)
            await ask(b"", timeout=self.timeout_seconds)
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.UNIMPLEMENTED or said_by_service(error)
        return True

    async def close(self) -> None:
        """Close the channel if one was opened."""
        if channel := self.__dict__.get("channel"):
            await channel.close(None)

    def domain_error(self, error: grpc.aio.AioRpcError) -> SoftPromptError:
        """The exception for a failed call. An error of the connection itself names the address."""
        found = error_from_rpc(error)
        if said_by_service(error):
            return found
        if isinstance(found, Unavailable):
            if "Failed parsing HTTP/2" in found.message:
                other = "another program, or the service's port for metrics"
                reason = f"{self.endpoint} does not speak gRPC: it is the port of {other}"
                return InvalidInput.of(self._kind.option, reason)
            advice = _advice(found.message, self._security, self._security.uses_tls(self.endpoint))
            through = self._through_proxy()
            about = {"endpoint": self.endpoint} | ({"proxy": through} if through else {})
            where = f"{self.name} can't be reached at {self.endpoint}{through}"
            return Unavailable(f"{where}: {_reason(found.message)}{advice}", **about)
        if isinstance(found, DeadlineExceeded):
            message = found.message.replace("Deadline Exceeded", f"{self.name} did not answer in time")  # gRPC's text
            if through := self._through_proxy():
                return DeadlineExceeded(f"{message} (asked{through})", proxy=through)
            return DeadlineExceeded(message)
        return found

    def _through_proxy(self) -> str:
        """For error texts: the environment's proxy for this service, or an empty text."""
        if self._is_routed or is_local(self.endpoint):
            return ""
        proxy = next((proxy for host in hosts_of(self.endpoint) if (proxy := grpc_proxy(host))), "")
        return f" through the proxy {proxy}" if proxy else ""


def _reason(message: str) -> str:
    """gRPC's message about a connection that failed, without its names for the steps: "Connection refused"."""
    return re.sub(r"^.*last error: ([A-Z_]+: )?(\S+: )?(Failed to connect to remote host: )?", "", message)


def _advice(message: str, security: ClientSecurity, uses_tls: bool) -> str:
    """Advice for gRPC's messages about a failed handshake."""
    if "CERTIFICATE_VERIFY_FAILED" in message or "Hostname Verification" in message:
        return f" (its certificate is not trusted, has expired or is for another name; see {CA_VARIABLE})"
    if "WRONG_VERSION_NUMBER" in message:
        return f" (it does not use TLS; if that is intended, set {TLS_VARIABLE}=off or --plaintext)"
    if "CERTIFICATE_REQUIRED" in message or "HANDSHAKE_FAILURE" in message:
        return f" (it requires a client certificate; see {CERTIFICATE_VARIABLE})"
    if not ("Socket closed" in message or "reset by peer" in message):
        return ""
    if not uses_tls:
        return f" (it may use TLS while this client does not; set {TLS_VARIABLE}=on)"
    return "" if security.certificate_file else f" (it may require a client certificate; see {CERTIFICATE_VARIABLE})"


class Connection:
    """Both services. A service that is never called is never connected to."""

    def __init__(
        self,
        trainer: str | None,
        inference: str | None,
        timeout_seconds: float,
        security: ClientSecurity,
        retry_overloaded: bool = True,
    ) -> None:
        common = timeout_seconds, security, retry_overloaded
        self.trainer = Peer(TRAINER, trainer or trainer_endpoint(), *common)
        self.inference = Peer(INFERENCE, inference or inference_endpoint(), *common)

    @cached_property
    def tuning(self) -> tuning_pb2_grpc.TuningServiceAsyncStub:
        """Stub of the trainer's TuningService."""
        return tuning_pb2_grpc.TuningServiceStub(self.trainer.channel)

    @cached_property
    def prompts(self) -> prompts_pb2_grpc.PromptServiceAsyncStub:
        """Stub of the trainer's PromptService."""
        return prompts_pb2_grpc.PromptServiceStub(self.trainer.channel)

    @cached_property
    def generation(self) -> generation_pb2_grpc.GenerationServiceAsyncStub:
        """Stub of the inference service's GenerationService."""
        return generation_pb2_grpc.GenerationServiceStub(self.inference.channel)

    async def send(self, request: Message, timeout_seconds: float | None = None) -> Any:
        """The response of the method that the request is named after: `GetPromptRequest` is of `GetPrompt`."""
        service = request.DESCRIPTOR.file.name.rpartition("/")[2].removesuffix(".proto")
        peer = self.inference if service == "generation" else self.trainer
        method = getattr(getattr(self, service), request.DESCRIPTOR.name.removesuffix("Request"))
        return await peer.call(method, request, timeout_seconds)

    async def ask(self, kind: type[T], request: Message, field: str = "", timeout_seconds: float | None = None) -> T:
        """The response to the request, or a field of it, as a value of this kind."""
        response = await self.send(request, timeout_seconds)
        return read(kind, getattr(response, field) if field else response)

    async def all_pages(self, kind: type[T], request: Any, field: str, limit: int | None = None) -> list[T]:
        """The elements of this field in the responses to a request for a list, at most `limit`. Raises InvalidInput for
        a negative `limit`.
        """
        if limit is not None and limit < 0:
            raise InvalidInput.of("limit", f"must be at least 0, is {limit}")
        found: list[T] = []
        while limit is None or len(found) < limit:
            request.page_size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(found))
            response = await self.send(request)
            found += [read(kind, element) for element in getattr(response, field)]
            request.page_token = response.next_page_token
            if not request.page_token:
                break
        return found

    async def close(self) -> None:
        """Close both channels."""
        await self.trainer.close()
        await self.inference.close()
