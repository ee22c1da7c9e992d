"""`/v1/models`: the base models, the prompts that the caller may use, their aliases and versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shared.errors import InvalidInput, NotFound
from shared.names import DEFAULT_ALIAS, PromptReference, parse_version_name
from shared.values.enums import LoadedState
from shared.values.generation import LoadedPrompt
from softprompt.gateway.backend import Backend
from softprompt.gateway.endpoint import endpoint
from softprompt.gateway.errors import no_such_model
from softprompt.gateway.results import version_model

_OWNER = "softprompt"


@endpoint("models.list")
async def list_models(request: Request, backend: Backend) -> Response:
    """All values of `model` that the caller may use."""
    loaded = await backend.client.loaded_prompts()
    bases = [_model(name, 0) for name in await backend.base_models()]
    return JSONResponse({"object": "list", "data": [*bases, *_models(loaded.prompts)]})


@endpoint("models.retrieve")
async def get_model(request: Request, backend: Backend) -> Response:
    """One of them."""
    name = request.path_params["model"]
    if name in await backend.base_models():
        await backend.client.model_info(name)  # whose answer depends on the caller
        return JSONResponse(_model(name, 0))
    try:
        reference = PromptReference.parse(name)
        loaded = await backend.client.loaded_prompts(reference.prompt)
    except (InvalidInput, NotFound):
        raise no_such_model(name) from None
    found = next((model for model in _models(loaded.prompts) if model["id"] == name), None)
    if found is None and reference.alias == DEFAULT_ALIAS:  # `name@default` is `name`
        found = next((model for model in _models(loaded.prompts) if model["id"] == reference.prompt), None)
    if found is None:
        raise no_such_model(name)
    return JSONResponse({**found, "id": name})


def _models(loaded: tuple[LoadedPrompt, ...]) -> Iterator[dict[str, Any]]:
    for version in loaded:
        if version.state is LoadedState.QUARANTINED:
            continue
        created = int(version.load_time.timestamp()) if version.load_time else 0
        prompt, _ = parse_version_name(version.version, "version")
        for alias in version.aliases:
            yield _model(prompt if alias == DEFAULT_ALIAS else f"{prompt}@{alias}", created)
        yield _model(version_model(version.version), created)


def _model(id: str, created: int) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": created, "owned_by": _OWNER}
