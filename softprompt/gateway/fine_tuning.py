"""`/v1/fine_tuning/jobs`: the trainer's tuning jobs."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shared.errors import Conflict, NotFound, PermissionDenied
from shared.values.spec import PublishPolicy, TuningSpec
from softprompt.gateway import paging
from softprompt.gateway.backend import Backend
from softprompt.gateway.body import read_model, settings_of
from softprompt.gateway.endpoint import endpoint
from softprompt.gateway.errors import ApiError, Rename, bad_value
from softprompt.gateway.fields import Fields, renaming
from softprompt.gateway.files import dataset_of
from softprompt.gateway.tuning_objects import checkpoints, event_number, event_object, job_name, job_object
from softprompt.gateway.tuning_specs import TuningRequest, idempotency_key, tuning_spec
from softprompt.types.events import JobEvent
from softprompt.types.jobs import TuningJob

_NAMES = {
    "spec.prompt": "suffix",
    "spec.base_model": "model",
    "spec.dataset": "training_file",
    "dataset": "training_file",
    "spec.validation_dataset": "validation_file",
    "validation dataset": "validation_file",
    "spec.annotations": "metadata",
    "spec.hyperparameters.seed": "seed",
    "spec.hyperparameters.init.source": "model",
    "request_id": "Idempotency-Key",
    "after": "after",
    "name": "fine_tuning_job_id",
}


def _rename(body: TuningRequest) -> Rename:
    own = {
        "spec.hyperparameters": body.place,
        "spec.hyperparameters.num_epochs": f"{body.place}.n_epochs",
        "spec.hyperparameters.learning_rate": f"{body.place}.learning_rate_multiplier",
    }
    return renaming({**_NAMES, **own})


@endpoint("fine_tuning.jobs.create", TuningRequest)
async def create_job(request: Request, backend: Backend) -> Response:
    """Trains a prompt on a file of examples."""
    body = await read_model(request, TuningRequest)
    request.state.rename, request.state.model = _rename(body), body.model
    key = idempotency_key(request)
    spec = await tuning_spec(backend, body, key)
    try:
        job = await _created(backend, spec, key)
    except Conflict:
        text = f"Idempotency-Key: {key!r} was used before, for a request with other parameters"
        raise ApiError(409, text, param="Idempotency-Key", code="conflict") from None
    except NotFound as error:
        if error.kind != "dataset":
            raise
        is_held_out = body.validation_file is not None and error.name == dataset_of(body.validation_file)
        param = "validation_file" if is_held_out else "training_file"
        raise bad_value(param, "is not one of your files", "invalid_file") from None
    return await _answer(backend, job)


async def _created(backend: Backend, spec: TuningSpec, key: str) -> TuningJob:
    """The queued job. The version of a caller that may not move aliases has no alias; it is used by its number."""
    try:
        return await backend.client.create_job(spec, request_id=key)
    except PermissionDenied as error:
        if error.metadata.get("role") != "publisher":
            raise
    return await backend.client.create_job(replace(spec, publish=PublishPolicy(alias="-")), request_id=key)


_LIST_QUERY = {
    "limit": paging.LIMIT_SCHEMA,
    "after": paging.TEXT_SCHEMA,
    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
}


@endpoint("fine_tuning.jobs.list", query=_LIST_QUERY)
async def list_jobs(request: Request, backend: Backend) -> Response:
    """The jobs that the caller may see, newest first."""
    request.state.rename = renaming(_NAMES)
    limit, after = paging.limit_of(request, 20), request.query_params.get("after", "")
    if "metadata" in request.query_params:
        raise bad_value("metadata", "must name a key: metadata[key]=value")
    wanted = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    previous = await _previous(backend, after) if after else ""
    jobs = await backend.client.list_jobs(annotations=wanted, after=previous, limit=limit + 1)
    rate = await backend.recipe_rate()
    return JSONResponse(paging.listed([job_object(job, rate) for job in jobs], limit))


async def _previous(backend: Backend, id: str) -> str:
    """The last job of the previous page."""
    try:
        return (await backend.client.get_job(job_name(id))).name
    except (ApiError, NotFound):
        raise bad_value("after", f"{id[:100]!r} is not the id of one of your jobs") from None


@endpoint("fine_tuning.jobs.retrieve")
async def get_job(request: Request, backend: Backend) -> Response:
    """One job."""
    return await _answer(backend, await backend.client.get_job(_name(request)))


@endpoint("fine_tuning.jobs.cancel")
async def cancel_job(request: Request, backend: Backend) -> Response:
    """Stops a job for good."""
    return await _answer(backend, await backend.client.cancel_job(await _name_alone(request)))


@endpoint("fine_tuning.jobs.pause")
async def pause_job(request: Request, backend: Backend) -> Response:
    """Takes a job off its worker; it keeps its state."""
    return await _answer(backend, await backend.client.pause_job(await _name_alone(request)))


@endpoint("fine_tuning.jobs.resume")
async def resume_job(request: Request, backend: Backend) -> Response:
    """Continues a paused job."""
    return await _answer(backend, await backend.client.resume_job(await _name_alone(request)))


async def _answer(backend: Backend, job: TuningJob) -> Response:
    return JSONResponse(job_object(job, await backend.recipe_rate()))


def _name(request: Request) -> str:
    return job_name(request.path_params["id"])


async def _name_alone(request: Request) -> str:
    """The job's name. Raises ApiError, or ValidationError, if the request has a body with anything in it."""
    await read_model(request, Fields, may_be_missing=True)
    return _name(request)


_EVENTS_QUERY = {"limit": paging.LIMIT_SCHEMA, "after": paging.TEXT_SCHEMA}


@endpoint("fine_tuning.jobs.list_events", query=_EVENTS_QUERY)
async def list_events(request: Request, backend: Backend) -> Response:
    """What happened to a job, newest first."""
    limit, after = paging.limit_of(request, 20), request.query_params.get("after", "")
    job = await backend.client.get_job(_name(request))
    last = event_number(after, job) - 1 if after else job.last_event
    async with asyncio.timeout(settings_of(request).call_seconds):
        events = await _last_events(backend, job, last, limit + 1)
    return JSONResponse(paging.listed([event_object(job, event) for event in reversed(events)], limit))


async def _last_events(backend: Backend, job: TuningJob, last: int, count: int) -> list[JobEvent]:
    """The last `count` events up to number `last`, oldest first. Numbers may be missing, so it may look twice."""
    reach = 2 * count
    while True:
        after, found = max(0, last - reach), list[JobEvent]()
        if last > after:
            async for event in backend.client.watch_job(job.name, after=after):
                if event.number <= last:
                    found.append(event)
                if event.number >= last:
                    break
        if len(found) >= count or after == 0:
            return found[-count:]
        reach *= 8


@endpoint("fine_tuning.jobs.checkpoints.list", query=_EVENTS_QUERY)
async def list_checkpoints(request: Request, backend: Backend) -> Response:
    """The states of a job that can be used as a model: the version that it published."""
    limit, after = paging.limit_of(request, 10), request.query_params.get("after", "")
    found = checkpoints(await backend.client.get_job(_name(request)))
    places = [index for index, checkpoint in enumerate(found) if checkpoint["id"] == after]
    if after and not places:
        raise bad_value("after", "is not the id of a checkpoint of this job")
    return JSONResponse(paging.listed(found[places[0] + 1 :] if after else found, limit))
