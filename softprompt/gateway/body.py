"""Reads the bodies of requests within limits of size, time and number, and JSON strictly."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json
from starlette.requests import Request

from softprompt.gateway.backend import Backend
from softprompt.gateway.errors import ApiError, bad_value
from softprompt.gateway.settings import GatewaySettings

Model = TypeVar("Model", bound=BaseModel)
COMPRESSED = (b"\x1f\x8b", b"PAR1", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")
"""First bytes of compressed files, which need more memory than their size."""
ZIP = b"PK\x03\x04"
"""First bytes of an archive, XLSX among them."""


def settings_of(request: Request) -> GatewaySettings:
    """The gateway's settings."""
    settings: GatewaySettings = request.app.state.settings
    return settings


async def read_model(request: Request, model: type[Model], *, may_be_missing: bool = False) -> Model:
    """The JSON body as a model. Raises ApiError, and pydantic's ValidationError naming the parameter."""
    settings = settings_of(request)
    content = bytearray()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json"  # a browser sends other types to any address without asking it first
    if not is_json and not may_be_missing:
        raise wrong_type("JSON", "application/json", kind)
    async for chunk in bounded_stream(request, settings.max_body_bytes, settings.body_seconds):
        content += chunk
    if may_be_missing and not content:
        return model()
    if not is_json:
        raise wrong_type("JSON", "application/json", kind)
    value = _parsed(bytes(content))
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return model.model_validate(value)


def wrong_type(what: str, media_type: str, sent: str) -> ApiError:
    """415 for a body of another type than `media_type`, which is `what`."""
    text = f"the body must be {what} (Content-Type: {media_type}); its type is {sent[:80] or 'missing'}"
    return ApiError(415, text, code="unsupported_media_type")


async def bounded_stream(request: Request, max_bytes: int, seconds: float) -> AsyncGenerator[bytes]:
    """The body's chunks. Raises ApiError: 413 above `max_bytes`, 408 after `seconds`, 415 if it is compressed."""
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        text = f"the body must not be compressed (Content-Encoding: {encoding[:80]!r})"
        raise ApiError(415, text, code="unsupported_media_type")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    loop = asyncio.get_running_loop()
    num_bytes, deadline = 0, loop.time() + seconds
    chunks = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                chunk = await anext(chunks, None)
        except TimeoutError:
            text = f"the body did not arrive within {seconds:g} s"
            raise ApiError(408, text, code="request_timeout") from None
        if chunk is None:
            return
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


@asynccontextmanager
async def upload_slot(request: Request, backend: Backend) -> AsyncIterator[None]:
    """One of the simultaneous uploads. Raises ApiError if all are taken, and the service's error without the role."""
    await backend.client.list_datasets(limit=1)  # a caller without a role can't make the gateway read a whole file
    uploads: asyncio.Semaphore = request.app.state.uploads
    if uploads.locked():
        text, headers = "too many uploads at the same time", {"Retry-After": "2"}
        raise ApiError(429, text, code="rate_limit_exceeded", headers=headers)
    async with uploads:
        yield


def file_name(given: str) -> str:
    """The name without directories and control characters; empty if nothing is left."""
    name = given.rpartition("/")[2].rpartition("\\")[2]
    return "".join(character for character in name if character.isprintable())[-255:]


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"the body has more than {max_bytes} bytes", code="request_too_large")


def _fields_once(fields: list[tuple[str, Any]]) -> None:
    """Raises ApiError if an object has two fields of one name."""
    names = set[str]()
    for name, _ in fields:
        if name in names:
            raise bad_value(name[:80], "comes twice in one object")
        names.add(name)


def _parsed(content: bytes) -> Any:
    """The JSON value, without NaN, infinities, lone surrogates, invalid UTF-8, deep nesting and repeated fields."""
    if content.startswith(codecs.BOM_UTF8):
        raise ApiError(400, "the body begins with a byte order mark; JSON is sent without it", code="invalid_json")
    try:
        value = from_json(content, allow_inf_nan=False, cache_strings="none")
        json.loads(content, object_pairs_hook=_fields_once)  # from_json takes the last of equal names
        return value
    except ValueError as error:
        if "recursion limit" in str(error):
            raise ApiError(400, "the body has objects or lists nested too deeply", code="invalid_json") from None
        raise ApiError(400, f"the body is not valid JSON: {str(error)[:200]}", code="invalid_json") from None
