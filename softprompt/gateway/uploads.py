"""What all uploads have in common: who may send one, how many at once, and what a file may be called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from softprompt.gateway.backend import Backend
from softprompt.gateway.errors import ApiError

COMPRESSED = (b"\x1f\x8b", b"PAR1", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")
"""First bytes of compressed files, which need more memory than their size."""
ZIP = b"PK\x03\x04"
"""First bytes of an archive, XLSX among them."""


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
