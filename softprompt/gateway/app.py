"""The routes. A page has its own: static files below `/`, and JSON for it below `/api/`; `/v1/` is OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Match, Route

from softprompt.gateway import chat, completions, files, fine_tuning, models, responses
from softprompt.gateway.backend import Backend
from softprompt.gateway.endpoint import Endpoint
from softprompt.gateway.errors import api_error
from softprompt.gateway.metrics import Probes
from softprompt.gateway.openapi import openapi
from softprompt.gateway.page import data, jobs, prompts
from softprompt.gateway.page.static_files import static_file
from softprompt.gateway.settings import GatewaySettings

API: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/v1/models", models.list_models),
    ("GET", "/v1/models/{model:path}", models.get_model),
    ("POST", "/v1/chat/completions", chat.create_chat_completion),
    ("POST", "/v1/completions", completions.create_completion),
    ("POST", "/v1/responses", responses.create_response),
    ("POST", "/v1/files", files.create_file),
    ("GET", "/v1/files", files.list_files),
    ("GET", "/v1/files/{id}", files.get_file),
    ("GET", "/v1/files/{id}/content", files.get_content),
    ("DELETE", "/v1/files/{id}", files.delete_file),
    ("POST", "/v1/fine_tuning/jobs", fine_tuning.create_job),
    ("GET", "/v1/fine_tuning/jobs", fine_tuning.list_jobs),
    ("GET", "/v1/fine_tuning/jobs/{id}", fine_tuning.get_job),
    ("POST", "/v1/fine_tuning/jobs/{id}/cancel", fine_tuning.cancel_job),
    ("POST", "/v1/fine_tuning/jobs/{id}/pause", fine_tuning.pause_job),
    ("POST", "/v1/fine_tuning/jobs/{id}/resume", fine_tuning.resume_job),
    ("GET", "/v1/fine_tuning/jobs/{id}/events", fine_tuning.list_events),
    ("GET", "/v1/fine_tuning/jobs/{id}/checkpoints", fine_tuning.list_checkpoints),
)
"""Method, path and endpoint of OpenAI's API. OpenAPI describes these."""
PAGE_API: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/api/preview", data.preview),
    ("POST", "/api/check", jobs.check_job),
    ("GET", "/api/jobs", jobs.list_jobs),
    ("POST", "/api/jobs", jobs.create_job),
    ("GET", "/api/jobs/{job}", jobs.get_job),
    ("GET", "/api/jobs/{job}/events", jobs.job_events),
    ("GET", "/api/jobs/{job}/report", jobs.job_report),
    ("POST", "/api/jobs/{job}/continue", jobs.continue_job),
    ("POST", "/api/jobs/{job}/{action}", jobs.act_on_job),
    ("GET", "/api/prompts", prompts.list_prompts),
    ("GET", "/api/prompts/{prompt}", prompts.get_prompt),
    ("POST", "/api/prompts/{prompt}/aliases/{alias}", prompts.set_alias),
    ("GET", "/api/status", prompts.status),
)
"""The page's own endpoints."""
_SHOWN_CHARS = 200
OPERATIONS = tuple(one.operation for _, _, one in (*API, *PAGE_API))
"""Labels of the metrics."""


def create_app(settings: GatewaySettings, backend: Backend, probes: Probes) -> Starlette:
    """The application without the layer around all requests (`exchange`)."""
    app = Starlette(routes=list(_routes()), exception_handlers={HTTPException: _refused})
    app.state.uploads = asyncio.Semaphore(settings.max_uploads)
    app.state.settings, app.state.backend, app.state.probes = settings, backend, probes
    app.router.redirect_slashes = False
    return app


def _routes() -> Iterator[BaseRoute]:
    for method, path, one in (*API, *PAGE_API):
        yield Route(path, one.respond, methods=[method])
    yield Route("/openapi.json", _openapi)
    yield Route("/livez", _live)
    yield Route("/readyz", _ready)
    yield Route("/", static_file)
    yield Route("/{name}", static_file)


async def _openapi(request: Request) -> Response:
    return JSONResponse(openapi(API))


async def _live(request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _ready(request: Request) -> Response:
    is_ready = request.app.state.probes.is_ready
    return PlainTextResponse("ok\n" if is_ready else "no\n", 200 if is_ready else 503)


async def _refused(request: Request, error: Exception) -> Response:
    found = api_error(error)
    if found.status == 405:  # Starlette names only the first route of this path
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        found.headers["Allow"] = ", ".join(sorted({method for route in routes for method in route.methods}))
    if found.status in (404, 405):
        path = request.url.path[:_SHOWN_CHARS]
        found.message = f"there is no {request.method} {path}; GET /openapi.json lists what there is, all under /v1"
    return found.response()
