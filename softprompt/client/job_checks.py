"""Checks of a job before it is created, and before its examples are sent."""

from __future__ import annotations

from dataclasses import replace

from prompttuning.v1 import tuning_pb2

from shared.errors import InvalidInput, Unimplemented
from shared.values.spec import TuningSpec
from shared.wire.mirror import read, write
from softprompt.client.connection import Connection
from softprompt.types.jobs import JobCheck, TuningJob

_DATASET_FIELD = "spec.dataset"


async def check_job(connection: Connection, spec: TuningSpec, dataset: str, validation: str) -> JobCheck:
    """What the trainer says about a job with stored datasets; it creates none. Raises its refusal."""
    message = _message(spec, dataset, validation)
    request = tuning_pb2.CreateTuningJobRequest(spec=message, validate_only=True)
    response = await connection.send(request)
    if response.job.name:
        raise Unimplemented(f"this trainer is too old to check jobs: it created {response.job.name}")
    seconds = response.estimate.duration.ToNanoseconds() / 1e9 if response.estimate.HasField("duration") else None
    memory_bytes = response.estimate.memory_bytes if response.estimate.HasField("memory_bytes") else None
    return JobCheck(read(TuningJob, response.job), seconds, memory_bytes)


async def check_before_upload(connection: Connection, spec: TuningSpec, request_id: str) -> None:
    """Raises what the trainer would refuse whatever the examples are: a missing permission, a full queue, a wrong name.
    Without a dataset, a trainer that does not know `validate_only` refuses the request and creates nothing.
    """
    message = _message(spec, "", "")
    message.ClearField("dataset")
    request = tuning_pb2.CreateTuningJobRequest(spec=message, request_id=request_id, validate_only=True)
    try:
        await connection.send(request)
    except InvalidInput as error:
        if any(violation.field != _DATASET_FIELD for violation in error.violations):
            raise


def _message(spec: TuningSpec, dataset: str, validation: str) -> tuning_pb2.TuningSpec:
    stored = replace(spec, dataset=dataset, validation_dataset=validation)
    return write(stored, tuning_pb2.TuningSpec(), "spec")
