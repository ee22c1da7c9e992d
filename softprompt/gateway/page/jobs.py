"""Jobs on the page: created from a dropped file, watched, acted on, and continued with corrected answers."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Set
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from shared.values.hyperparameters import Hyperparameters
from shared.values.spec import TuningSpec
from softprompt.gateway.backend import Backend
from softprompt.gateway.body import read_model, upload_slot
from softprompt.gateway.endpoint import endpoint
from softprompt.gateway.errors import ApiError, bad_value
from softprompt.gateway.fields import Fields
from softprompt.gateway.page.data import FILE_QUERY, uploaded, write_file
from softprompt.gateway.paging import TEXT_SCHEMA, whole_number
from softprompt.gateway.results import json_response
from softprompt.gateway.streaming import EventStream, event

_MAX_JOBS = 100
_JOB_QUERY = {**FILE_QUERY, "prompt": TEXT_SCHEMA, "base_model": TEXT_SCHEMA, "num_steps": {"type": "integer"}}


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
    """The estimate of a job with the file in the body. Its examples are stored; no job is created."""
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


@endpoint("page.jobs.events", query={"after": {"type": "integer"}}, streams=True)
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


class Corrected(Fields):
    """A person's answer to the held-out example at a line of the job's data, as the report numbers them."""

    line: int = Field(ge=1)
    text: str = Field(min_length=1, max_length=65_536)


class Corrections(Fields):
    """Answers to add to a job's data."""

    examples: list[Corrected] = Field(min_length=1, max_length=1000)


@endpoint("page.jobs.continue", Corrections)
async def continue_job(request: Request, backend: Backend) -> Response:
    """Trains a job's prompt on, with the job's data and corrected examples, which move from the held-out part to the
    training part with all examples of the same input: a new split would hold them out again.
    """
    request.state.rename = _rename
    body = await read_model(request, Corrections)
    client = backend.client
    report = await client.job_report(_job(request))
    if report.job.spec is not None and report.job.spec.distillation is not None:
        message = "the job's examples were written from a text: change the text, and distill it again"
        raise ApiError(400, message, code="failed_precondition")
    lineage = report.lineage
    if lineage is None or not lineage.dataset.startswith("datasets/"):
        raise ApiError(400, "the job's data is not stored here", code="failed_precondition")
    corrected = {item.line: item.text for item in body.examples}
    shown = {answer.line for answer in report.answers}
    if not corrected.keys() <= shown:
        raise bad_value("examples", "a line is not among the job's held-out answers")
    held_out = shown.union(report.other_held_out_lines)
    counted = report.job.dataset_statistics
    if not lineage.validation_dataset and counted is not None and len(held_out) < counted.num_validation:
        message = "the job was trained by an earlier release, which did not keep what it held out: train it again first"
        raise ApiError(400, message, code="failed_precondition")
    async with upload_slot(request, backend):
        with tempfile.TemporaryDirectory(prefix="softprompt-") as name:
            folder = Path(name)
            await _download(backend, lineage.dataset, folder / "all.jsonl")
            if lineage.validation_dataset:
                await _download(backend, lineage.validation_dataset, folder / "shown.jsonl")
            await asyncio.to_thread(_move, folder, held_out, corrected)
            job = await client.continue_job(
                _job(request),
                dataset=folder / "train.jsonl",
                validation_dataset=folder / "held-out.jsonl",
                validation_fraction=None,
            )
            return json_response(job, 201)


async def _download(backend: Backend, dataset: str, path: Path) -> None:
    async with aclosing(backend.client.download_dataset(dataset)) as chunks:
        await write_file(path, chunks)


def _move(folder: Path, held_out: Set[int], corrected: Mapping[int, str]) -> None:
    """Write the training part, and the rest of the held-out part. Without a file for the held-out part, it is the lines
    `held_out` of all examples. Every example with the input of a line in `corrected` gets the new answer and moves to
    the training part. Raises ApiError.
    """
    everything, own = folder / "all.jsonl", folder / "shown.jsonl"
    answers: dict[str, str] = {}
    with (own if own.exists() else everything).open("rb") as file:
        for number, line in enumerate(file, 1):
            if number in corrected and answers.setdefault(_input(line), corrected[number]) != corrected[number]:
                raise bad_value("examples", f"line {number} has the input of another line, but not its answer")
    with (folder / "train.jsonl").open("wb") as train, (folder / "held-out.jsonl").open("wb") as left:
        for path in (everything, own) if own.exists() else (everything,):
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if (text := answers.get(_input(line))) is not None:
                        train.write(json.dumps(_answered(json.loads(line), text)).encode() + b"\n")
                    else:
                        is_held_out = path == own or (not own.exists() and number in held_out)
                        (left if is_held_out else train).write(line.removesuffix(b"\n") + b"\n")  # the last may lack it
        if not left.tell():
            message = "at least one held-out example must stay as it is, to measure the next version on"
            raise bad_value("examples", message)


def _input(line: bytes) -> str:
    """The input of an example, the same for examples that a split keeps together; empty for a blank line."""
    if not line.strip():
        return ""
    row = json.loads(line)
    turns = row["messages"][:-1] if "messages" in row else [{"role": "user", "content": row["input"]}]
    return json.dumps([[turn["role"], turn["content"].strip()] for turn in turns])


def _answered(row: dict[str, Any], text: str) -> dict[str, Any]:
    if "messages" in row:
        return {**row, "messages": [*row["messages"][:-1], {**row["messages"][-1], "content": text}]}
    return {**row, "label" if "label" in row else "output": text}
