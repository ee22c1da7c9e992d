"""The two services' addresses, channels and stubs, default deadlines, and the one place where a failed call becomes a domain error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TypeVar, cast

import grpc
from prompttuning.v1 import generation_pb2_grpc, prompts_pb2_grpc, tuning_pb2_grpc

from shared.errors import DeadlineExceeded, SoftPromptError, Unavailable
from shared.process.proxies import grpc_proxy
from shared.rpc.errors import error_from_rpc
from softprompt.client.channel import open_channel
from softprompt.client.security import CA_VARIABLE, CERTIFICATE_VARIABLE, TLS_VARIABLE, ClientSecurity, hosts_of, is_local
from softprompt.endpoints import inference_endpoint, trainer_endpoint

T = TypeVar("T")

_RICH_STATUS_KEY = "grpc-status-details-bin"


class Peer:
    """One service at one address. Its channel opens on first use, in the event loop that uses it."""

    def __init__(self, name: str, endpoint: str, timeout_seconds: float, security: ClientSecurity) -> None:
        self.name, self.endpoint, self.timeout_seconds, self._security = name, endpoint, timeout_seconds, security

    @cached_property
    def channel(self) -> grpc.aio.Channel:
        return cast("grpc.aio.Channel", open_channel(self.endpoint, self._security))

    async def call(self, method: Callable[..., Awaitable[T]], request: object, timeout_seconds: float | None = None) -> T:
        """One call with a single response and a deadline."""
        with self.errors():
            return await method(request, timeout=self.timeout_seconds if timeout_seconds is None else timeout_seconds)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Failed calls leave as `shared.errors` exceptions."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self.domain_error(error) from error

    async def close(self) -> None:
        if channel := self.__dict__.get("channel"):
            await channel.close(None)

    def domain_error(self, error: grpc.aio.AioRpcError) -> SoftPromptError:
        """What a failed call means; an error of the connection itself says where it was to lead."""
        found = error_from_rpc(error)
        said_by_service = _RICH_STATUS_KEY in dict(cast("Iterable[tuple[str, object]]", error.trailing_metadata() or ()))
        if isinstance(found, Unavailable) and not said_by_service:
            advice = _advice(found.message, self._security, self._security.uses_tls(self.endpoint))
            through = self._through_proxy()
            about = {"endpoint": self.endpoint} | ({"proxy": through} if through else {})
            return Unavailable(f"{self.name} can't be reached at {self.endpoint}{through}: {found.message}{advice}", **about)
        if isinstance(found, DeadlineExceeded) and not said_by_service and (through := self._through_proxy()):
            return DeadlineExceeded(f"{found.message} (asked{through})", proxy=through)
        return found

    def _through_proxy(self) -> str:
        """For people: the environment's proxy that calls to this service go through, if there is one."""
        if is_local(self.endpoint):
            return ""
        proxy = next((proxy for host in hosts_of(self.endpoint) if (proxy := grpc_proxy(host))), "")
        return f" through the proxy {proxy}" if proxy else ""


def _advice(message: str, security: ClientSecurity, uses_tls: bool) -> str:
    """What gRPC's words about a handshake mean."""
    if "CERTIFICATE_VERIFY_FAILED" in message or "Hostname Verification" in message:
        return f" (its certificate is not trusted, has expired or is for another name: see {CA_VARIABLE})"
    if "WRONG_VERSION_NUMBER" in message:
        return f" (it speaks no TLS; {TLS_VARIABLE}=off, or --plaintext, if that is meant)"
    if "CERTIFICATE_REQUIRED" in message or "HANDSHAKE_FAILURE" in message:
        return f" (it asks for a client certificate: see {CERTIFICATE_VARIABLE})"
    if not ("Socket closed" in message or "reset by peer" in message):
        return ""
    if not uses_tls:
        return f" (perhaps it speaks TLS and this client does not: {TLS_VARIABLE}=on)"
    return "" if security.certificate_file else f" (perhaps it asks for a client certificate: see {CERTIFICATE_VARIABLE})"


class Connection:
    """Both services. A caller who needs only one never connects to the other."""

    def __init__(self, trainer: str | None, inference: str | None, timeout_seconds: float, security: ClientSecurity) -> None:
        self.trainer = Peer("the trainer", trainer or trainer_endpoint(), timeout_seconds, security)
        self.inference = Peer("the inference service", inference or inference_endpoint(), timeout_seconds, security)

    @cached_property
    def tuning(self) -> tuning_pb2_grpc.TuningServiceAsyncStub:
        return tuning_pb2_grpc.TuningServiceStub(self.trainer.channel)

    @cached_property
    def prompts(self) -> prompts_pb2_grpc.PromptServiceAsyncStub:
        return prompts_pb2_grpc.PromptServiceStub(self.trainer.channel)

    @cached_property
    def generation(self) -> generation_pb2_grpc.GenerationServiceAsyncStub:
        return generation_pb2_grpc.GenerationServiceStub(self.inference.channel)

    async def close(self) -> None:
        await self.trainer.close()
        await self.inference.close()
