"""Jobs on the page: created from a dropped file, watched, acted on, and continued with corrected answers."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from softprompt.gateway.backend import Backend
from softprompt.gateway.body import read_model
from softprompt.gateway.endpoint import endpoint
from softprompt.gateway.errors import ApiError, bad_value
from softprompt.gateway.page.answers import json_response, whole_number
from softprompt.gateway.page.data import FILE_QUERY, uploaded
from softprompt.gateway.streaming import EventStream, event
from softprompt.gateway.uploads import upload_slot
from softprompt.types.spec import Hyperparameters, TuningSpec

_MAX_JOBS = 100
_JOB_QUERY = {**FILE_QUERY, "prompt": {"type": "string"}, "num_steps": {"type": "integer"}}


@asynccontextmanager
async def _job_spec(request: Request, backend: Backend) -> AsyncIterator[TuningSpec]:
    """The job that the query describes, for the file in the body."""
    request.state.rename = _rename
    num_steps = whole_number(request, "num_steps")
    async with uploaded(request, backend) as data:
        yield TuningSpec(
            prompt=request.query_params.get("prompt", ""),
            dataset=data,
            base_model=request.query_params.get("base_model", ""),
            hyperparameters=Hyperparameters(num_steps=num_steps),
        )


@endpoint("page.jobs.create", query=_JOB_QUERY)
async def create_job(request: Request, backend: Backend) -> Response:
    """Starts a job with the file in the body."""
    async with _job_spec(request, backend) as spec:
        return json_response(await backend.client.create_job(spec), 201)


@endpoint("page.jobs.check", query=_JOB_QUERY)
async def check_job(request: Request, backend: Backend) -> Response:
    """What a job with the file in the body would be: its time, the recipe's choices, and what was counted in the data.
    The examples are stored, and no job is created.
    """
    async with _job_spec(request, backend) as spec:
        return json_response(await backend.client.validate_job(spec))


def _rename(field: str) -> str:
    return field.removeprefix("spec.").removeprefix("hyperparameters.")


@endpoint("page.jobs.list")
async def list_jobs(request: Request, backend: Backend) -> Response:
    """The newest jobs."""
    return json_response(await backend.client.list_jobs(limit=_MAX_JOBS))


@endpoint("page.jobs.get")
async def get_job(request: Request, backend: Backend) -> Response:
    """One job."""
    return json_response(await backend.client.get_job(_job(request)))


@endpoint("page.jobs.report")
async def job_report(request: Request, backend: Backend) -> Response:
    """The curves, held-out answers, statistics and cost of a job."""
    return json_response(await backend.client.job_report(_job(request)))


@endpoint("page.jobs.events", streams=True)
async def job_events(request: Request, backend: Backend) -> Response:
    """The events of a job after the number in the query, until it ends."""
    after = whole_number(request, "after") or 0
    name = _job(request)
    await backend.client.get_job(name)  # an unknown job is a 404, not a stream

    async def events() -> AsyncGenerator[bytes]:
        async for item in backend.client.watch_job(name, after=after):
            yield event({"kind": type(item).__name__, **from_json(to_json(item, inf_nan_mode="null"))})

    return EventStream(events(), lambda: None, _rename)


@endpoint("page.jobs.act")
async def act_on_job(request: Request, backend: Backend) -> Response:
    """Pauses, resumes or cancels a job."""
    client = backend.client
    actions = {"pause": client.pause_job, "resume": client.resume_job, "cancel": client.cancel_job}
    if (act := actions.get(request.path_params["action"])) is None:
        raise ApiError(404, f"a job's actions are {', '.join(actions)}", code="unknown_url")
    return json_response(await act(_job(request)))


def _job(request: Request) -> str:
    return f"tuningJobs/{request.path_params['job']}"


class Corrected(BaseModel):
    """A person's answer to the held-out example at a line of the job's data, as the report numbers them."""

    model_config = ConfigDict(extra="forbid")
    line: int = Field(ge=1)
    text: str = Field(min_length=1, max_length=65_536)


class Corrections(BaseModel):
    """Answers to add to a job's data."""

    model_config = ConfigDict(extra="forbid")
    examples: list[Corrected] = Field(min_length=1, max_length=1000)


@endpoint("page.jobs.continue", Corrections)
async def continue_job(request: Request, backend: Backend) -> Response:
    """Trains a job's prompt on, with the job's data and corrected examples."""
    request.state.rename = _rename
    body = await read_model(request, Corrections)
    client = backend.client
    lineage = (await client.job_report(_job(request), answers=False)).lineage
    if lineage is None or not lineage.dataset.startswith("datasets/"):
        raise ApiError(400, "the job's data is not stored here", code="failed_precondition")
    wanted = {item.line: item.text for item in body.examples}
    async with upload_slot(request, backend):
        with tempfile.TemporaryDirectory(prefix="softprompt-") as directory:
            path, held_out = Path(directory, "examples.jsonl"), Path(directory, "held-out.jsonl")
            await _download(backend, lineage.dataset, path)
            if lineage.validation_dataset:
                await _download(backend, lineage.validation_dataset, held_out)
            await asyncio.to_thread(_add, path, held_out if lineage.validation_dataset else path, wanted)
            return json_response(await client.continue_job(_job(request), dataset=path), 201)


async def _download(backend: Backend, dataset: str, path: Path) -> None:
    with await asyncio.to_thread(path.open, "wb") as file:
        async with aclosing(backend.client.download_dataset(dataset)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(file.write, chunk)


def _add(path: Path, source: Path, wanted: Mapping[int, str]) -> None:
    """Adds to the examples of `path` those of `source` at these lines, with these answers. Raises ApiError."""
    with source.open("rb") as file:
        rows = [(json.loads(line), wanted[number]) for number, line in enumerate(file, 1) if number in wanted]
    if len(rows) < len(wanted):
        raise bad_value("examples", "a line is not in the job's data")
    with path.open("r+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        for row, text in rows:
            file.write(json.dumps(_answered(row, text)).encode() + b"\n")


def _answered(row: dict[str, Any], text: str) -> dict[str, Any]:
    if "messages" in row:
        return {**row, "messages": [*row["messages"][:-1], {**row["messages"][-1], "content": text}]}
    return {**row, "label" if "label" in row else "output": text}
