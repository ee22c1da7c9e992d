"""The page's files, with headers that let the browser run nothing else."""

from __future__ import annotations

from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # a new release must not run with an old release's files
}
_INDEX = "index.html"


def _read() -> dict[str, tuple[bytes, str]]:
    """Content and type of each file by its name."""
    found = (item for item in (files("softprompt.gateway.page") / "static").iterdir() if item.is_file())
    return {item.name: (item.read_bytes(), _TYPES[item.name[item.name.rindex(".") :]]) for item in found}


_FILES = _read()


async def static_file(request: Request) -> Response:
    """The file that the path names; `/` is the page."""
    found = _FILES.get(request.path_params.get("name") or _INDEX)
    if found is None:
        raise HTTPException(404)
    content, media_type = found
    return Response(content, media_type=media_type, headers=_HEADERS)
