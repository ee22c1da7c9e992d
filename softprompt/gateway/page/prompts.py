"""Prompts with their aliases on the page, and the state of both services."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from shared.errors import SoftPromptError
from shared.values.prompts import AliasTarget
from softprompt.gateway.backend import Backend
from softprompt.gateway.body import read_model
from softprompt.gateway.endpoint import endpoint
from softprompt.gateway.errors import api_error
from softprompt.gateway.fields import Fields
from softprompt.gateway.results import json_response


@endpoint("page.prompts.list")
async def list_prompts(request: Request, backend: Backend) -> Response:
    """All prompts of the caller."""
    return json_response(await backend.client.list_prompts())


@endpoint("page.prompts.get")
async def get_prompt(request: Request, backend: Backend) -> Response:
    """A prompt with its versions and where each is served."""
    name = request.path_params["prompt"]
    prompt, versions, status = await asyncio.gather(
        backend.client.get_prompt(name), backend.client.list_versions(name), backend.client.prompt_status(name)
    )
    return json_response({"prompt": prompt, "versions": versions, "status": status})


class _Target(Fields):
    version: int = Field(ge=1)
    weight: float = Field(default=1.0, ge=0)


class AliasMove(Fields):
    """Where an alias should point. `expected_revision`: as the page showed it; the call fails if it has moved since."""

    targets: list[_Target] = Field(min_length=1, max_length=8)
    expected_revision: int | None = None


@endpoint("page.aliases.set", AliasMove)
async def set_alias(request: Request, backend: Backend) -> Response:
    """Moves an alias: a rollback has one target, a canary two."""
    body = await read_model(request, AliasMove)
    targets = [AliasTarget(item.version, item.weight) for item in body.targets if item.weight > 0]
    prompt, alias = request.path_params["prompt"], request.path_params["alias"]
    revision = body.expected_revision
    return json_response(await backend.client.set_alias(prompt, alias, targets, expected_revision=revision))


@endpoint("page.status")
async def status(request: Request, backend: Backend) -> Response:
    """Both services' state and the live replicas; what can't be asked has `null` and its error's text."""

    async def answer(call: Any) -> dict[str, Any]:
        try:
            return {"info": await call, "error": ""}
        except SoftPromptError as error:
            return {"info": None, "error": api_error(error).message}

    client = backend.client
    calls = {"trainer": client.service_info(), "inference": client.model_info(), "replicas": client.list_replicas()}
    return json_response(dict(zip(calls, await asyncio.gather(*map(answer, calls.values())), strict=True)))
