"""What makes a handler an endpoint: its name for metrics, its description for OpenAPI, and its errors' shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from softprompt.gateway.backend import Backend
from softprompt.gateway.errors import api_error
from softprompt.gateway.paging import check_query

Handler = Callable[[Request, Backend], Awaitable[Response]]


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A handler with what OpenAPI says of it. `respond` is for a route."""

    operation: str
    """Name as in OpenAI's client: `chat.completions.create`. The label of its metrics."""
    handler: Handler
    body: type[BaseModel] | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    """JSON schema by name of its query parameters."""
    form: Mapping[str, Any] | None = None
    """JSON schema of its multipart form."""
    streams: bool = False
    """Whether it can answer with server-sent events."""
    downloads: bool = False
    """Whether it answers with a file."""

    async def respond(self, request: Request) -> Response:
        """The handler's response, or that of its error."""
        request.state.operation = self.operation
        try:
            check_query(request, self.query)
            return await self.handler(request, request.app.state.backend)
        except Exception as error:
            rename = getattr(request.state, "rename", lambda field: field)
            return api_error(error, rename, getattr(request.state, "model", "")).response()


def endpoint(operation: str, body: type[BaseModel] | None = None, **about: Any) -> Callable[[Handler], Endpoint]:
    """Make a handler an endpoint. `body`: the model of its JSON body; `about`: the further fields of `Endpoint`."""
    return lambda handler: Endpoint(operation, handler, body, **about)
