"""The services as the gateway uses them: one client for all callers, whose tokens go on with each call."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from shared.errors import Unauthenticated
from shared.values.generation import ModelInfo
from shared.values.service import ServiceInfo
from softprompt.client.async_client import AsyncClient
from softprompt.client.calls import LatestAnswer, carrying
from softprompt.client.security import ClientSecurity
from softprompt.gateway.errors import no_such_model
from softprompt.gateway.settings import GatewaySettings

_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")
"""What gRPC can send as metadata. A longer one would exceed the services' limit on metadata."""
_INFO_SECONDS = 30.0


class Reference(NamedTuple):
    """What a request's `model` means: a prompt reference, or the id of a base model."""

    prompt: str = ""
    base_model: str = ""


class Backend:
    """Both services. Open it in the event loop that serves."""

    def __init__(self, settings: GatewaySettings, security: ClientSecurity | None = None) -> None:
        # A token of the environment is ignored: with it, callers without one would act as the gateway.
        security = replace(security or ClientSecurity.from_environment(), token="", token_file="")
        self._has_certificate = bool(security.certificate_file)
        self.client = AsyncClient(
            settings.trainer or None,
            settings.inference or None,
            timeout_seconds=settings.call_seconds,
            generation_timeout_seconds=settings.generation_seconds,
            security=security,
            retry_overloaded=False,  # callers get the delay, and repeat the request themselves
        )
        self._infos: dict[str, tuple[ModelInfo, float]] = {}
        """By base model, at most as many as there are; with the time of reading."""
        self._trainer_info: ServiceInfo | None = None
        self._trainer_read_at = 0.0

    @contextmanager
    def acting_for(self, authorization: list[str], request_id: str, latest: LatestAnswer) -> Iterator[None]:
        """Calls in the block carry the caller's token and the request's id; `latest` notes the services' answers.
        Raises Unauthenticated for `authorization` headers other than one bearer token or none; also for none if the
        gateway has a certificate, which the services would take for the caller's.
        """
        metadata: tuple[tuple[str, str], ...] = (("x-request-id", request_id),)
        if authorization:
            scheme, _, token = authorization[0].partition(" ")
            token = token.strip(" ")
            if len(authorization) > 1 or scheme.lower() != "bearer" or not _TOKEN.fullmatch(token):
                raise Unauthenticated("the header must be `Authorization: Bearer TOKEN`, exactly once")
            metadata += (("authorization", f"Bearer {token}"),)
        elif self._has_certificate:
            raise Unauthenticated("no credentials: send `Authorization: Bearer TOKEN`")
        with carrying(metadata, latest):
            yield

    async def model_info(self, base_model: str = "") -> ModelInfo:
        """A base model and its limits, at most half a minute old. `base_model`: one of `base_models`; empty: any."""
        info, read_at = self._infos.get(base_model, (None, 0.0))
        if info is None or time.monotonic() - read_at > _INFO_SECONDS:
            info = await self.client.model_info(base_model)
            self._infos[base_model] = info, time.monotonic()
        return info

    async def base_models(self) -> tuple[str, ...]:
        """Ids of the base models that are served."""
        info = await self.model_info()
        return info.base_models or ((info.base_model.id,) if info.base_model else ())

    async def service_info(self) -> ServiceInfo:
        """The trainer's base models and defaults; they are the same for all callers, and at most half a minute old."""
        if self._trainer_info is None or time.monotonic() - self._trainer_read_at > _INFO_SECONDS:
            self._trainer_info, self._trainer_read_at = await self.client.service_info(), time.monotonic()
        return self._trainer_info

    async def recipe_rate(self) -> float | None:
        """The learning rate that the trainer's recipe chooses."""
        defaults = (await self.service_info()).default_hyperparameters
        return defaults.learning_rate if defaults else None

    async def reference(self, model: str) -> Reference:
        """What a request's `model` means."""
        if not model:
            raise no_such_model(model)
        return Reference(base_model=model) if model in await self.base_models() else Reference(model)

    async def close(self) -> None:
        """Close the connections to both services."""
        await self.client.close()
