"""A base model whose directory is missing or broken stops only the jobs that name it, and is found once it is there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import PreconditionFailed
from shared.model import fingerprint
from tests.trainer_service.conftest import RunningTrainer, refused, running_trainer
from tests.trainer_service.requests import create_job, tuning_spec
from tests.waiting import until
from trainer_service import server
from trainer_service.base_models import BaseModels, BaseModelSource
from trainer_service.config import TrainerSettings


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(server, "CHECK_SECONDS", 0.05)


async def is_ready(trainer: RunningTrainer) -> bool:
    reply = await health_pb2_grpc.HealthStub(trainer.channel).Check(health_pb2.HealthCheckRequest(service="ready"))
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def test_one_missing_model_stops_its_own_jobs_only_until_it_is_there(
    settings: TrainerSettings, tiny_model_dir: Path, tmp_path: Path
) -> None:
    late = tmp_path / "late"
    both = settings.model_copy(update={"base_models": (f"tiny={tiny_model_dir}", f"late={late}")})
    async with running_trainer(both) as trainer:
        assert await is_ready(trainer)
        await create_job(trainer)
        info = await trainer.tuning.GetServiceInfo(pb.GetServiceInfoRequest())
        assert [model.id for model in info.base_models] == ["tiny"]
        assert [missing.id for missing in info.unavailable_base_models] == ["late"]
        assert str(tmp_path) not in str(info)
        request = pb.CreateTuningJobRequest(spec=tuning_spec(base_model="late"))
        error = await refused(trainer.tuning.CreateTuningJob(request))
        assert isinstance(error, PreconditionFailed)
        assert "late is not available now" in error.message
        shutil.copytree(tiny_model_dir, late)

        async def is_known() -> bool:
            return not (await trainer.tuning.GetServiceInfo(pb.GetServiceInfoRequest())).unavailable_base_models

        await until(is_known)
        assert (await trainer.tuning.CreateTuningJob(request)).job.spec.base_model in ("", "late")


async def test_a_trainer_without_any_model_answers_and_is_ready_once_one_is_there(
    settings: TrainerSettings, tiny_model_dir: Path, tmp_path: Path
) -> None:
    late = tmp_path / "late"
    async with running_trainer(settings.model_copy(update={"base_models": (f"late={late}",)})) as trainer:
        assert not await is_ready(trainer)
        info = await trainer.tuning.GetServiceInfo(pb.GetServiceInfoRequest())
        assert not info.HasField("default_hyperparameters")
        assert len((await trainer.tuning.ListTuningJobs(pb.ListTuningJobsRequest())).jobs) == 0
        shutil.copytree(tiny_model_dir, late)
        await until(lambda: is_ready(trainer))
        await create_job(trainer)


@pytest.mark.parametrize("damage", ["config.json", "tokenizer.json", "weights", "truncated"])
def test_a_broken_directory_is_a_missing_model(tiny_model_dir: Path, tmp_path: Path, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, broken)
    if damage in ("weights", "truncated"):
        for file in broken.glob("*.safetensors"):
            file.unlink() if damage == "weights" else os.truncate(file, file.stat().st_size // 2)
    else:
        (broken / damage).write_text("{ not json")
    models = BaseModels([BaseModelSource("tiny", str(tiny_model_dir)), BaseModelSource("broken", str(broken))])
    models.load()
    assert models.states() == {"tiny": "available", "broken": "unavailable"}
    assert str(tmp_path) not in models.unavailable["broken"]
    with pytest.raises(PreconditionFailed, match="broken is not available"):
        models.get("broken")
    shutil.rmtree(broken)
    shutil.copytree(tiny_model_dir, broken)
    models.load()
    assert models.get("broken").info.id == "broken"


def test_a_model_of_other_bytes_than_its_shipped_fingerprint_is_refused(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = Path(shutil.copytree(tiny_model_dir, tmp_path / "shipped"))
    fingerprint.ship(directory)
    weights = directory / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    models = BaseModels([BaseModelSource("tiny", str(tiny_model_dir)), BaseModelSource("shipped", str(directory))])
    models.load()
    assert models.states() == {"tiny": "available", "shipped": "available"}
    models.verify()
    assert models.states() == {"tiny": "available", "shipped": "refused"}
    with pytest.raises(PreconditionFailed, match="models fingerprint"):
        models.get("shipped")
