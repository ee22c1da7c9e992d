"""Calls about datasets in the name of one of three callers."""

from __future__ import annotations

from typing import Any

import grpc
from prompttuning.v1 import tuning_pb2 as pb

from shared.security.tokens import new_token
from tests.trainer_service.conftest import RunningTrainer
from tests.trainer_service.requests import tuning_spec, upload_of

NAMES = ("acme", "acme-2", "rival")
TOKENS = {name: new_token() for name in NAMES}


def by(name: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {TOKENS[name]}"),)}


async def upload(trainer: RunningTrainer, name: str, data: bytes, **header: Any) -> str:
    response = await trainer.tuning.UploadDataset(upload_of(data, **header), **by(name))
    return str(response.dataset)


async def create(trainer: RunningTrainer, name: str, **fields: Any) -> pb.TuningJob:
    spec = tuning_spec(**{"publish": pb.PublishPolicy(alias="-"), **fields})
    job: pb.TuningJob = (await trainer.tuning.CreateTuningJob(pb.CreateTuningJobRequest(spec=spec), **by(name))).job
    return job


async def listed(trainer: RunningTrainer, name: str, **fields: Any) -> pb.ListDatasetsResponse:
    response: pb.ListDatasetsResponse = await trainer.tuning.ListDatasets(pb.ListDatasetsRequest(**fields), **by(name))
    return response


async def get(trainer: RunningTrainer, name: str, dataset: str) -> pb.Dataset:
    found: pb.Dataset = (await trainer.tuning.GetDataset(pb.GetDatasetRequest(name=dataset), **by(name))).dataset
    return found


async def content(trainer: RunningTrainer, name: str, dataset: str) -> bytes:
    call = trainer.tuning.DownloadDataset(pb.DownloadDatasetRequest(name=dataset), **by(name))
    return b"".join([response.chunk async for response in call])


def delete(trainer: RunningTrainer, name: str, dataset: str) -> Any:
    return trainer.tuning.DeleteDataset(pb.DeleteDatasetRequest(name=dataset), **by(name))


def status(error: Exception) -> tuple[Any, str]:
    """The status on the wire: its code and its text."""
    cause = error.__cause__
    assert isinstance(cause, grpc.aio.AioRpcError)
    return cause.code(), cause.details() or ""
