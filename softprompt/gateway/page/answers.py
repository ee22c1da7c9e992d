"""Helpers of the page's endpoints: numbers from the query, and answers as JSON."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from softprompt.gateway.errors import bad_value

_MAX_DIGITS = 15


def json_response(value: Any, status: int = 200) -> Response:
    """Values of the client as JSON. Numbers that are not finite become null."""
    return Response(to_json(value, inf_nan_mode="null"), status, media_type="application/json")


def whole_number(request: Request, name: str) -> int | None:
    """A whole number of the query; None if it is missing or empty. Raises ApiError naming it."""
    text = request.query_params.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise bad_value(name, f"a whole number is expected, not {text[:20]!r}")
    return int(text)
