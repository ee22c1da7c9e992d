"""JSON for the page: data previews, jobs with their events, prompts with their aliases, and the services' state."""

from __future__ import annotations

import asyncio
import os
import tempfile
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from shared.errors import InvalidInput, Overloaded, SoftPromptError
from softprompt.client.tuning import SLOWEST_BYTES_PER_SECOND
from softprompt.data.files import file_rows
from softprompt.data.layout import Layouts
from softprompt.data.prepare import DATASET, prepare
from softprompt.data.problems import Unusable, UnusableData
from softprompt.gateway.backend import Backend
from softprompt.gateway.body import bounded_stream, read_model, settings_of
from softprompt.gateway.endpoint import Endpoint, endpoint
from softprompt.gateway.errors import ApiError, bad_value
from softprompt.gateway.streaming import EventStream, event
from softprompt.types.data import Data
from softprompt.types.prompts import AliasTarget
from softprompt.types.spec import Hyperparameters, TuningSpec

_PREVIEW_ROWS = 8
_MAX_JOBS = 100
_COLUMNS = ("input", "output", "label", "messages")
_COMPRESSED = (b"\x1f\x8b", b"PAR1", b"BZh", b"\xfd7zX", b"(\xb5/\xfd")
_OPTIONS = {"filename": {"type": "string"}, **{name: {"type": "string"} for name in (*_COLUMNS, "drop_extra")}}


def _json(value: Any, status: int = 200) -> Response:
    """Values of the client as JSON. Numbers that are not finite become null."""
    return Response(to_json(value, inf_nan_mode="null"), status, media_type="application/json")


@asynccontextmanager
async def _uploaded(request: Request, backend: Backend) -> AsyncIterator[Data]:
    """The body as a file of the name and with the columns that the query gives. The file is gone afterwards."""
    await backend.client.list_datasets(limit=1)  # nobody without a role makes the gateway read a whole file
    query = request.query_params
    name = os.path.basename(query.get("filename", "").replace("\\", "/"))[-100:]
    if not name or name.startswith("."):
        raise bad_value("filename", "the name of the file is missing")
    uploads: asyncio.Semaphore = request.app.state.uploads
    if uploads.locked():
        raise Overloaded("too many uploads at the same time")
    settings = settings_of(request)
    async with uploads:
        with tempfile.TemporaryDirectory(prefix="softprompt-") as directory:
            path = Path(directory) / name
            seconds = settings.body_seconds + settings.max_file_bytes / SLOWEST_BYTES_PER_SECOND
            with path.open("wb") as file:
                async for chunk in bounded_stream(request, settings.max_file_bytes, seconds):
                    await asyncio.to_thread(file.write, chunk)
            _check_size(path, settings.max_file_bytes)
            columns = {column: query.get(column, "") for column in _COLUMNS}
            yield Data(path, drop_extra=query.get("drop_extra") == "true", **columns)


def _check_size(path: Path, limit: int) -> None:
    """Refuses what would take much more memory than its size tells. Raises ApiError."""
    if zipfile.is_zipfile(path):  # XLSX
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(item.file_size for item in archive.infolist())
        if num_bytes > limit:
            raise ApiError(413, f"the file has more than {limit} bytes when unpacked", code="request_too_large")
        return
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_COMPRESSED):
        raise bad_value("file", "the page reads CSV, TSV, XLSX and JSON; for others: softprompt datasets upload")


@dataclass(frozen=True)
class Preview:
    """What a file holds, and how it was read. `problems` is empty if it can be used."""

    format: str
    columns: tuple[str, ...]
    used: dict[str, str]
    """Column by role."""
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
                    layout = Layouts(Data("", **{name: getattr(data, name) for name in _COLUMNS}, drop_extra=True)).of(
                        row.fields
                    )
                    used = {role: found for role in _COLUMNS if (found := getattr(layout, role))}
            if len(first) == _PREVIEW_ROWS:
                break
    rows.items.close()
    found = partial(Preview, columns=tuple(columns), used=used, rows=tuple(first))
    try:
        prepared = prepare(data)
    except InvalidInput as error:
        problems = tuple(f"{item.field}: {item.description}" for item in error.violations)
        advice = error.advice if isinstance(error, UnusableData) else ""
        return found(rows.format, num_examples=0, report=(), problems=problems, advice=advice)
    return found(prepared.format, num_examples=prepared.num_examples, report=prepared.report, problems=(), advice="")


@endpoint("page.preview", query=_OPTIONS)
async def preview(request: Request, backend: Backend) -> Response:
    """What a file holds. Nothing is stored."""
    async with _uploaded(request, backend) as data:
        return _json(await asyncio.to_thread(_preview, data))


_JOB_OPTIONS = {**_OPTIONS, "prompt": {"type": "string"}, "num_steps": {"type": "integer"}}


@asynccontextmanager
async def _job_spec(request: Request, backend: Backend) -> AsyncIterator[TuningSpec]:
    """The job that the query describes, for the file in the body."""
    request.state.rename = _rename
    steps = request.query_params.get("num_steps", "")
    if steps and not steps.isdecimal():
        raise bad_value("num_steps", f"a whole number is expected, not {steps[:20]!r}")
    async with _uploaded(request, backend) as data:
        yield TuningSpec(
            prompt=request.query_params.get("prompt", ""),
            dataset=data,
            base_model=request.query_params.get("base_model", ""),
            hyperparameters=Hyperparameters(num_steps=int(steps) if steps else None),
        )


@endpoint("page.jobs.create", query=_JOB_OPTIONS)
async def create_job(request: Request, backend: Backend) -> Response:
    """Starts a job with the file in the body."""
    async with _job_spec(request, backend) as spec:
        return _json(await backend.client.create_job(spec), 201)


@endpoint("page.jobs.check", query=_JOB_OPTIONS)
async def check_job(request: Request, backend: Backend) -> Response:
    """What a job with the file in the body would be: its time, the recipe's choices, and what was counted in the data.
    The examples are stored, and no job is created.
    """
    async with _job_spec(request, backend) as spec:
        return _json(await backend.client.validate_job(spec))


def _rename(field: str) -> str:
    return field.removeprefix("spec.").removeprefix("hyperparameters.")


@endpoint("page.jobs.list")
async def list_jobs(request: Request, backend: Backend) -> Response:
    """The newest jobs."""
    return _json(await backend.client.list_jobs(limit=_MAX_JOBS))


@endpoint("page.jobs.get")
async def get_job(request: Request, backend: Backend) -> Response:
    """One job."""
    return _json(await backend.client.get_job(_job(request)))


@endpoint("page.jobs.report")
async def job_report(request: Request, backend: Backend) -> Response:
    """The curves, held-out answers, statistics and cost of a job."""
    return _json(await backend.client.job_report(_job(request)))


@endpoint("page.jobs.events", streams=True)
async def job_events(request: Request, backend: Backend) -> Response:
    """The events of a job after the number in the query, until it ends."""
    after = request.query_params.get("after", "0")
    if not after.isdecimal():
        raise bad_value("after", "the number of an event is expected")
    name = _job(request)
    await backend.client.get_job(name)  # an unknown job is a 404, not a stream

    async def events() -> AsyncGenerator[bytes]:
        async for item in backend.client.watch_job(name, after=int(after)):
            yield event({"kind": type(item).__name__, **from_json(to_json(item, inf_nan_mode="null"))})

    return EventStream(events(), lambda: None, _rename)


@endpoint("page.jobs.act")
async def act_on_job(request: Request, backend: Backend) -> Response:
    """Pauses, resumes or cancels a job."""
    client = backend.client
    actions = {"pause": client.pause_job, "resume": client.resume_job, "cancel": client.cancel_job}
    if (act := actions.get(request.path_params["action"])) is None:
        raise ApiError(404, f"a job's actions are {', '.join(actions)}", code="unknown_url")
    return _json(await act(_job(request)))


def _job(request: Request) -> str:
    return f"tuningJobs/{request.path_params['job']}"


class Corrected(BaseModel):
    """An example whose answer a person corrected."""

    model_config = ConfigDict(extra="forbid")
    input: str = Field(min_length=1, max_length=65_536)
    output: str | None = Field(default=None, max_length=65_536)
    label: str | None = Field(default=None, max_length=1024)


class Corrections(BaseModel):
    """Examples to add to a job's data."""

    model_config = ConfigDict(extra="forbid")
    examples: list[Corrected] = Field(min_length=1, max_length=1000)


@endpoint("page.jobs.continue", Corrections)
async def continue_job(request: Request, backend: Backend) -> Response:
    """Trains a job's prompt on, with the job's data and corrected examples."""
    request.state.rename = _rename
    body = await read_model(request, Corrections)
    client = backend.client
    report = await client.job_report(_job(request), answers=False)
    if report.lineage is None or not report.lineage.dataset.startswith("datasets/"):
        raise ApiError(400, "the job's data is no longer stored", code="failed_precondition")
    with tempfile.TemporaryDirectory(prefix="softprompt-") as directory:
        path = Path(directory) / "examples.jsonl"
        with path.open("wb") as file:
            async with aclosing(client.download_dataset(report.lineage.dataset)) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
            for item in body.examples:
                file.write(item.model_dump_json(exclude_none=True).encode() + b"\n")
        return _json(await client.continue_job(_job(request), dataset=path), 201)


@endpoint("page.prompts.list")
async def list_prompts(request: Request, backend: Backend) -> Response:
    """All prompts of the caller."""
    return _json(await backend.client.list_prompts())


@endpoint("page.prompts.get")
async def get_prompt(request: Request, backend: Backend) -> Response:
    """A prompt with its versions and where each is served."""
    name = request.path_params["prompt"]
    prompt, versions, status = await asyncio.gather(
        backend.client.get_prompt(name), backend.client.list_versions(name), backend.client.prompt_status(name)
    )
    return _json({"prompt": prompt, "versions": versions, "status": status})


class _Target(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: int = Field(ge=1)
    weight: float = Field(default=1.0, ge=0)


class AliasMove(BaseModel):
    """Where an alias should point. `expected_revision`: the revision that the page showed, so that nobody's decision
    is overwritten unseen.
    """

    model_config = ConfigDict(extra="forbid")
    targets: list[_Target] = Field(min_length=1, max_length=8)
    expected_revision: int | None = None


@endpoint("page.aliases.set", AliasMove)
async def set_alias(request: Request, backend: Backend) -> Response:
    """Moves an alias: a rollback has one target, a canary two."""
    body = await read_model(request, AliasMove)
    targets = [AliasTarget(item.version, item.weight) for item in body.targets if item.weight > 0]
    alias = await backend.client.set_alias(
        request.path_params["prompt"],
        request.path_params["alias"],
        targets,
        expected_revision=body.expected_revision,
    )
    return _json(alias)


@endpoint("page.status")
async def status(request: Request, backend: Backend) -> Response:
    """Both services' state; a service that can't be reached has `null` and its error's text."""

    async def answer(call: Any) -> dict[str, Any]:
        try:
            return {"info": await call, "error": ""}
        except SoftPromptError as error:
            return {"info": None, "error": error.message}

    trainer, inference = await asyncio.gather(
        answer(backend.client.service_info()), answer(backend.client.model_info())
    )
    return _json({"trainer": trainer, "inference": inference})


PAGE_API: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/api/preview", preview),
    ("POST", "/api/check", check_job),
    ("GET", "/api/jobs", list_jobs),
    ("POST", "/api/jobs", create_job),
    ("GET", "/api/jobs/{job}", get_job),
    ("GET", "/api/jobs/{job}/events", job_events),
    ("GET", "/api/jobs/{job}/report", job_report),
    ("POST", "/api/jobs/{job}/continue", continue_job),
    ("POST", "/api/jobs/{job}/{action}", act_on_job),
    ("GET", "/api/prompts", list_prompts),
    ("GET", "/api/prompts/{prompt}", get_prompt),
    ("POST", "/api/prompts/{prompt}/aliases/{alias}", set_alias),
    ("GET", "/api/status", status),
)
