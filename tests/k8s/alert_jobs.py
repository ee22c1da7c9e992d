"""Jobs of a trainer under a fault, on workers whose training is scripted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prompttuning.v1 import tuning_pb2 as pb

from tests.trainer_service.conftest import RunningTrainer
from tests.trainer_service.local_pool import LocalPool
from tests.trainer_service.requests import inline
from tests.trainer_service.scripted import ScriptedTrainer


def scripted(load: Callable[[str], Any] = lambda id: (ScriptedTrainer(64), {})) -> LocalPool:
    return LocalPool(load, close_seconds=1.0)


def job_that(wish: str, **fields: Any) -> dict[str, Any]:
    examples = [pb.Example(input=f"{wish} {n}", output="yes") for n in range(20)]
    fields.setdefault("hyperparameters", pb.Hyperparameters(num_steps=4, num_virtual_tokens=4))
    return {"dataset": inline(examples), **fields}


async def ended(trainer: RunningTrainer, job: pb.TuningJob) -> Any:
    watch = trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=job.name))
    return [response.event async for response in watch][-1].state_changed
