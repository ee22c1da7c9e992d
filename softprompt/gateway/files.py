"""`/v1/files`: the trainer's datasets. A file's id is the digest of its examples; the same examples are one file."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any, BinaryIO

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from shared.errors import InvalidInput
from shared.values.datasets import StoredDataset
from softprompt.client.datasets import SLOWEST_BYTES_PER_SECOND
from softprompt.gateway import paging
from softprompt.gateway.backend import Backend
from softprompt.gateway.body import COMPRESSED, ZIP, bounded_stream, file_name, settings_of, upload_slot, wrong_type
from softprompt.gateway.endpoint import endpoint
from softprompt.gateway.errors import ApiError, bad_value, missing, unknown_field, unsupported

PURPOSE = "fine-tune"
_ID = re.compile(r"file-([0-9a-f]{64})")
_FORM_BYTES = 64 << 10
"""Size of a form besides its file."""
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".ndjson")
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "additionalProperties": False,
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"const": PURPOSE}},
}


def file_id(dataset: str) -> str:
    """`datasets/sha256-<hex>` as `file-<hex>`."""
    return dataset.replace("datasets/sha256-", "file-", 1)


def dataset_of(id: str) -> str:
    """`file-<hex>` as `datasets/sha256-<hex>`. Raises ApiError for an id that is not a file's."""
    match = _ID.fullmatch(id)
    if match is None:
        raise ApiError(404, f"No such file: {id[:100]!r}", param="id", code="not_found")
    return f"datasets/sha256-{match[1]}"


@endpoint("files.create", form=_FORM)
async def create_file(request: Request, backend: Backend) -> Response:
    """Stores a file of training examples."""
    async with upload_slot(request, backend):
        form = await _form(request)
        try:
            file, name = _checked(form)
            with tempfile.TemporaryDirectory(prefix="softprompt-upload-") as directory:
                path = Path(directory, f"file{_suffix(name)}")
                await asyncio.to_thread(_copy, file, path)
                dataset = await _stored(backend, path, name)
        finally:
            await form.close()
    return JSONResponse(_file(await backend.client.get_dataset(dataset)))


async def _form(request: Request) -> FormData:
    settings = settings_of(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise wrong_type("a form", "multipart/form-data", kind)
    size = request.headers.get("content-length", "")
    seconds = settings.body_seconds + (int(size) if size.isdecimal() else 0) / SLOWEST_BYTES_PER_SECOND
    most = settings.max_file_bytes + _FORM_BYTES
    async with aclosing(bounded_stream(request, most, min(seconds, most / SLOWEST_BYTES_PER_SECOND))) as stream:
        try:
            form = MultiPartParser(request.headers, stream, max_files=8, max_fields=8, max_part_size=_FORM_BYTES)
            return await form.parse()
        except (MultiPartException, UnicodeDecodeError, KeyError, LookupError) as error:
            text = error.message if isinstance(error, MultiPartException) else "it is not well-formed"
            raise ApiError(400, f"the form can't be read: {text}", code="invalid_form") from None


def _checked(form: FormData) -> tuple[BinaryIO, str]:
    """The file and its name. Raises ApiError naming the field."""
    for name in form:
        if name not in ("file", "purpose"):
            raise unknown_field(name.partition("[")[0])
        if len(form.getlist(name)) > 1:
            raise bad_value(name, "is given twice")
    purpose, file = form.get("purpose"), form.get("file")
    if purpose is None or file is None:
        raise missing("file" if file is None else "purpose")
    if purpose != PURPOSE:
        sent = repr(purpose[:40]) if isinstance(purpose, str) else "a file"
        raise unsupported("purpose", f"only {PURPOSE!r} is offered here, not {sent}")
    if not isinstance(file, UploadFile):
        raise bad_value("file", "must be a file with a name")
    return file.file, file_name(file.filename or "") or "file.jsonl"


def _suffix(name: str) -> str:
    """The suffix, by which the reader knows JSON from tables."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in _SUFFIXES else ".jsonl"


def _copy(file: BinaryIO, path: Path) -> None:
    file.seek(0)
    if file.read(8).startswith((ZIP, *COMPRESSED)):
        reason = "is compressed or binary: upload JSON lines, JSON or CSV as it is"
        raise bad_value("file", reason, "invalid_file_format")
    file.seek(0)
    with path.open("wb") as copy:
        shutil.copyfileobj(file, copy)


async def _stored(backend: Backend, path: Path, name: str) -> str:
    try:
        return (await backend.client.upload_dataset(path, file_name=name)).dataset
    except InvalidInput as error:
        found = [f"{one.field}: {one.description}".removeprefix("dataset").lstrip(": ") for one in error.violations]
        more = f" (and {len(found) - 10} more)" if len(found) > 10 else ""
        text = "; ".join(found[:10]).replace(repr(path.name), repr(name)) + more
        reason = f"The file can't be used as training examples: {text}"
        raise ApiError(400, reason, param="file", code="invalid_file_format") from error


_LIST_QUERY = {
    "purpose": paging.TEXT_SCHEMA,
    "limit": {**paging.LIMIT_SCHEMA, "maximum": 10_000},
    "order": {"enum": ["asc", "desc"]},
    "after": paging.TEXT_SCHEMA,
}


@endpoint("files.list", query=_LIST_QUERY)
async def list_files(request: Request, backend: Backend) -> Response:
    """The files of the caller's tenant, newest first."""
    query, limit = request.query_params, paging.limit_of(request, 10_000, 10_000)
    if (order := query.get("order", "desc")) not in ("asc", "desc"):
        raise bad_value("order", "must be asc or desc")
    files = [_file(dataset) for dataset in await backend.client.list_datasets()]
    files.sort(key=lambda file: (file["created_at"], file["id"]), reverse=order == "desc")
    if query.get("purpose", PURPOSE) != PURPOSE:
        files = []
    if after := query.get("after"):
        places = [index for index, file in enumerate(files) if file["id"] == after]
        if not places:
            raise bad_value("after", "is not the id of one of your files")
        files = files[places[0] + 1 :]
    return JSONResponse(paging.listed(files, limit))


@endpoint("files.retrieve")
async def get_file(request: Request, backend: Backend) -> Response:
    """One file."""
    return JSONResponse(_file(await backend.client.get_dataset(dataset_of(request.path_params["id"]))))


@endpoint("files.content", downloads=True)
async def get_content(request: Request, backend: Backend) -> Response:
    """The examples of a file as JSON lines, as the trainer has stored them."""
    chunks = backend.client.download_dataset(dataset_of(request.path_params["id"]))
    first = await anext(chunks, b"")  # its error still becomes a status
    return StreamingResponse(_rest(first, chunks), media_type="application/jsonl")


async def _rest(first: bytes, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            yield chunk


@endpoint("files.delete")
async def delete_file(request: Request, backend: Backend) -> Response:
    """Removes a file that no unfinished job needs."""
    id = request.path_params["id"]
    await backend.client.delete_dataset(dataset_of(id))
    return JSONResponse({"id": id, "object": "file", "deleted": True})


def _file(dataset: StoredDataset) -> dict[str, Any]:
    created = dataset.create_time
    return {
        "id": file_id(dataset.name),
        "object": "file",
        "bytes": dataset.size_bytes,
        "created_at": int(created.timestamp()) if created else 0,
        "filename": dataset.file_name or "file.jsonl",
        "purpose": PURPOSE,
        "status": "processed",
    }
