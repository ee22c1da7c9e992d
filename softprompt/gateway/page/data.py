"""Files that a person drops on the page: what they hold, before anything is stored."""

from __future__ import annotations

import asyncio
import tempfile
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from shared.errors import InvalidInput
from softprompt.client.datasets import SLOWEST_BYTES_PER_SECOND
from softprompt.data.files import file_rows
from softprompt.data.layout import Layouts
from softprompt.data.prepare import prepare
from softprompt.data.problems import Unusable, UnusableData
from softprompt.gateway.backend import Backend
from softprompt.gateway.body import COMPRESSED, ZIP, bounded_stream, file_name, settings_of, upload_slot
from softprompt.gateway.endpoint import endpoint
from softprompt.gateway.errors import ApiError, bad_value
from softprompt.gateway.results import json_response
from softprompt.types.data import DATASET, Data

_PREVIEW_ROWS = 8
_NAME_CHARS = 60
"""At four bytes each, a name that every file system takes."""
_COLUMNS = ("input", "output", "label", "messages")
FILE_QUERY = {"filename": {"type": "string"}, **{name: {"type": "string"} for name in (*_COLUMNS, "drop_extra")}}
"""JSON schema by name of the query parameters that describe a file."""


@asynccontextmanager
async def uploaded(request: Request, backend: Backend) -> AsyncIterator[Data]:
    """The body as a file of the name and with the columns that the query gives. It is removed afterwards."""
    query = request.query_params
    name = file_name(query.get("filename", ""))
    if not name or name.startswith("."):
        raise bad_value("filename", "the name of the file is missing")
    settings = settings_of(request)
    async with upload_slot(request, backend):
        with tempfile.TemporaryDirectory(prefix="softprompt-") as directory:
            path = Path(directory, name[-_NAME_CHARS:])
            seconds = settings.body_seconds + settings.max_file_bytes / SLOWEST_BYTES_PER_SECOND
            try:
                await write_file(path, bounded_stream(request, settings.max_file_bytes, seconds))
            except ApiError as error:
                raise _too_large(settings.max_file_bytes, "") if error.status == 413 else error from None
            await asyncio.to_thread(_check_size, path, settings.max_file_bytes)
            columns = {column: query.get(column, "") for column in _COLUMNS}
            yield Data(path, drop_extra=query.get("drop_extra") == "true", **columns)


async def write_file(path: Path, chunks: AsyncIterator[bytes]) -> None:
    """Writes a file that is open only within a thread's call: a request that ends while it opens could not close it."""

    def append(chunk: bytes) -> None:
        with path.open("ab") as file:
            file.write(chunk)

    await asyncio.to_thread(append, b"")
    async for chunk in chunks:
        await asyncio.to_thread(append, chunk)


def _check_size(path: Path, limit: int) -> None:
    """Refuses files that need much more memory than their size. Raises ApiError."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(COMPRESSED):
        raise bad_value("file", "the page reads CSV, TSV, XLSX and JSON; for others: softprompt datasets upload")
    if not start.startswith(ZIP):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(item.file_size for item in archive.infolist())
    # zipfile raises NotImplementedError for a compression that it doesn't know
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise bad_value("file", f"the sheet is damaged: {error}") from None
    if num_bytes > limit:
        raise _too_large(limit, " when unpacked")


def _too_large(limit: int, when: str) -> ApiError:
    text = f"the file has more than {limit / 2**20:.4g} MiB{when}; a part of its rows is enough to tune a prompt"
    return ApiError(413, text, code="request_too_large")


@dataclass(frozen=True)
class Preview:
    """What a file holds, and how it was read. `problems` is empty if it can be used."""

    format: str
    columns: tuple[str, ...]
    used: dict[str, str]
    """Column by role."""
    guess: dict[str, str]
    """Choices in the query that would make the file usable, if no column has a known name; else empty."""
    num_examples: int
    rows: tuple[dict[str, str], ...]
    """The first rows as the file has them."""
    report: tuple[str, ...]
    """What was changed or left out, as sentences."""
    problems: tuple[str, ...]
    advice: str


def _preview(data: Data) -> Preview:
    """Reads all of the file. Runs in a thread."""
    assert isinstance(data.source, Path)
    rows = file_rows(data.source, data, DATASET)
    first: list[dict[str, str]] = []
    columns: dict[str, None] = {}
    used: dict[str, str] = {}
    with suppress(InvalidInput):
        for row in rows.items:
            if isinstance(row.fields, Unusable):
                continue
            columns.update(dict.fromkeys(map(str, row.fields)))
            first.append({str(key): "" if value is None else str(value)[:500] for key, value in row.fields.items()})
            if not used:
                with suppress(Unusable):
                    layout = Layouts(replace(data, drop_extra=True)).of(row.fields)
                    used = {role: found for role in _COLUMNS if (found := getattr(layout, role))}
            if len(first) == _PREVIEW_ROWS:
                break
    rows.items.close()
    found = partial(Preview, columns=tuple(columns), used=used, rows=tuple(first))
    try:
        prepared = prepare(data)
    except InvalidInput as error:
        problems = tuple(f"{item.field}: {item.description}" for item in error.violations)
        advice, fix = (error.advice, error.fix) if isinstance(error, UnusableData) else ("", {})
        guess = {role: fix[option] for role in _COLUMNS if (option := f"--{role}") in fix}
        if guess and "--drop-extra" in fix:
            guess["drop_extra"] = "true"
        return found(rows.format, guess=guess, num_examples=0, report=(), problems=problems, advice=advice)
    num_examples, report = prepared.num_examples, prepared.report
    return found(prepared.format, guess={}, num_examples=num_examples, report=report, problems=(), advice="")


@endpoint("page.preview", query=FILE_QUERY)
async def preview(request: Request, backend: Backend) -> Response:
    """What a file holds. Nothing is stored."""
    async with uploaded(request, backend) as data:
        return json_response(await asyncio.to_thread(_preview, data))
