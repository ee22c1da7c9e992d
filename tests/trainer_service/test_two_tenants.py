"""Two tenants at a real trainer: the one with many jobs doesn't keep the other waiting, and priorities have a limit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import InvalidInput
from shared.security.tokens import hash_token, new_token
from tests.trainer_service.conftest import RunningTrainer, refused, running_trainer
from tests.trainer_service.requests import tuning_spec
from tests.trainer_service.test_training_end_to_end import local_pool
from tests.waiting import until
from trainer_service.config import TrainerSettings

MANY, ONE = new_token(), new_token()


def by(token: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {token}"),)}


async def create(trainer: RunningTrainer, token: str, **fields: Any) -> pb.TuningJob:
    few = pb.Hyperparameters(num_steps=2, num_virtual_tokens=2)
    spec = tuning_spec(publish=pb.PublishPolicy(alias="-"), **{"hyperparameters": few, **fields})
    job: pb.TuningJob = (await trainer.tuning.CreateTuningJob(pb.CreateTuningJobRequest(spec=spec), **by(token))).job
    return job


async def ended(trainer: RunningTrainer, token: str, job: pb.TuningJob) -> pb.TuningJob:
    found = job

    async def has_ended() -> bool:
        nonlocal found
        found = (await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=job.name), **by(token))).job
        return found.HasField("end_time")

    await until(has_ended)
    return found


async def test_one_job_is_not_behind_another_tenants_queue(settings: TrainerSettings, tmp_path: Path) -> None:
    tenants = [{"name": "large", "max_priority": 5}, {"name": "small"}]
    callers = [
        {"name": "many", "tenant": "large", "roles": ["tuner"], "token_sha256": [hash_token(MANY)]},
        {"name": "one", "tenant": "small", "roles": ["tuner"], "token_sha256": [hash_token(ONE)]},
    ]
    file = tmp_path / "callers.json"
    file.write_text(json.dumps({"tenants": tenants, "callers": callers}))
    asked = settings.model_copy(update={"callers_file": str(file), "max_jobs_per_worker": 1})
    async with running_trainer(asked, local_pool) as trainer:
        error = await refused(create(trainer, MANY, priority=6))
        assert isinstance(error, InvalidInput)
        assert error.violations[0].field == "spec.priority"
        long = await create(trainer, MANY, hyperparameters=pb.Hyperparameters(num_steps=100_000, num_virtual_tokens=2))

        async def runs() -> bool:
            job = (await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=long.name), **by(MANY))).job
            return bool(job.state == pb.TuningJob.STATE_RUNNING)

        await until(runs)
        waiting = await asyncio.gather(*(create(trainer, MANY, priority=5) for _ in range(6)))
        one = await create(trainer, ONE)
        assert one.queue_position == 0
        await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=long.name), **by(MANY))
        mine = await ended(trainer, ONE, one)
        theirs = [await ended(trainer, MANY, job) for job in waiting]
        assert mine.state == pb.TuningJob.STATE_SUCCEEDED
        assert mine.start_time.ToDatetime() < min(job.start_time.ToDatetime() for job in theirs)
