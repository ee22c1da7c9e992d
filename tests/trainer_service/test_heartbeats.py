"""Idle watches send heartbeats."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from prompttuning.v1 import prompts_pb2
from prompttuning.v1 import tuning_pb2 as pb

from tests.trainer_service.conftest import RunningTrainer, running_trainer
from tests.trainer_service.requests import create_job
from trainer_service.config import TrainerSettings


@pytest.fixture
async def trainer(settings: TrainerSettings) -> AsyncIterator[RunningTrainer]:
    async with running_trainer(settings.model_copy(update={"watch_heartbeat_seconds": 0.1})) as running:
        yield running


async def test_of_a_queued_job(trainer: RunningTrainer) -> None:
    job = await create_job(trainer)
    watch = aiter(trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=job.name)))
    events: list[Any] = [(await anext(watch)).event for _ in range(4)]
    assert [event.WhichOneof("kind") for event in events] == ["state_changed", *3 * ["heartbeat"]]
    assert [event.number for event in events] == [1, 1, 1, 1], "a watch that resumes from a heartbeat misses nothing"
    assert events[1].heartbeat.interval.ToMilliseconds() == 100
    await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=job.name))
    rest = [item.event.WhichOneof("kind") async for item in watch]
    assert rest[-1] == "state_changed"
    assert (await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=job.name))).job.last_event == 2, (
        "heartbeats are not stored"
    )


async def test_of_prompts_that_do_not_change(trainer: RunningTrainer) -> None:
    watch = aiter(trainer.prompts.WatchPrompts(prompts_pb2.WatchPromptsRequest()))
    snapshot, *beats = [await anext(watch) for _ in range(3)]
    assert snapshot.WhichOneof("change") == "snapshot"
    assert [beat.WhichOneof("change") for beat in beats] == ["heartbeat", "heartbeat"]
    assert {(beat.revision, beat.store_id) for beat in beats} == {(snapshot.revision, snapshot.store_id)}
