"""Query parameters, and lists in OpenAI's form: `limit`, and `after` with the last id of the previous page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from softprompt.gateway.errors import bad_value, unknown_field

MAX_LIMIT = 1000
LIMIT_SCHEMA = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}
TEXT_SCHEMA = {"type": "string"}
_MAX_DIGITS = 15


def check_query(request: Request, known: Mapping[str, Any]) -> None:
    """Raises ApiError naming a query parameter that is unknown or given twice. `known` has the JSON schema of each; an
    object's members are written `name[member]`.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        base, _, member = name.partition("[")
        is_member = len(member) > 1 and member.find("]") == len(member) - 1
        is_member = is_member and known.get(base, {}).get("type") == "object"
        if name not in known and not is_member:
            raise unknown_field(name)
        if names.count(name) > 1:
            raise bad_value(name, "is given twice")


def limit_of(request: Request, default: int, most: int = MAX_LIMIT) -> int:
    """The query parameter `limit`. Raises ApiError for anything but a number from 1 to `most`."""
    text = request.query_params.get("limit", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most):
        raise bad_value("limit", f"must be a number from 1 to {most}")
    return int(text)


def whole_number(request: Request, name: str) -> int | None:
    """A whole number of the query; None if it is missing or empty. Raises ApiError naming it."""
    text = request.query_params.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise bad_value(name, f"a whole number is expected, not {text[:20]!r}")
    return int(text)


def listed(objects: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """The list of the first `limit` objects, which may be followed by more."""
    shown = list(objects[:limit])
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(objects) > limit,
    }
