"""Examples to a published version through a real channel, with the real cohort in a worker of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import torch
from prompttuning.v1 import prompts_pb2
from prompttuning.v1 import tuning_pb2 as pb

from shared.blob import decode_blob
from shared.store import open_store
from tests.trainer_service.conftest import RunningTrainer, running_trainer
from tests.trainer_service.requests import classification_examples, create_job, first_step, inline
from trainer_service.cluster.loading import WorkerSpec, load_trainer
from trainer_service.cluster.local_pool import LocalPool
from trainer_service.config import TrainerSettings


def local_pool(settings: TrainerSettings) -> LocalPool:
    sources = {source.id: source.source for source in settings.sources}
    threads = torch.get_num_threads()
    return LocalPool(lambda id: load_trainer(WorkerSpec(id, sources[id], dtype="float32", device="cpu", num_threads=threads)))


@pytest.fixture
async def training(settings: TrainerSettings) -> AsyncIterator[RunningTrainer]:
    async with running_trainer(settings, local_pool) as running:
        yield running


async def watched(trainer: RunningTrainer, name: str, after: int = 0) -> list[pb.TuningEvent]:
    watch = trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=name, after=after))
    async with asyncio.timeout(60):
        return [response.event async for response in watch]


async def test_a_job_is_trained_evaluated_published_and_told(training: RunningTrainer) -> None:
    job = await create_job(training, hyperparameters=pb.Hyperparameters(num_steps=6, num_virtual_tokens=6, evaluation_interval_steps=2))
    events = await watched(training, job.name)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    states = [event.state_changed.state for event in events if event.HasField("state_changed")]
    assert states == [pb.TuningJob.STATE_QUEUED, pb.TuningJob.STATE_RUNNING, pb.TuningJob.STATE_SUCCEEDED]
    assert sum(event.HasField("evaluation") for event in events) >= 3
    ended = events[-1].state_changed
    assert ended.result.version == "prompts/support-tone/versions/1"
    assert ended.result.alias_moved
    assert ended.result.metrics["loss"] > 0
    assert ended.result.bare_metrics["loss"] > 0
    assert ended.result.template_metrics["loss"] > 0
    assert ended.result.score_stability >= 0
    assert ended.result.best_step in (2, 4, 6)
    assert ended.progress.grad_norm > 0
    assert len(ended.result.nearest_tokens) == 6
    assert all(token.text and -1.001 <= token.cosine <= 1.001 for token in ended.result.nearest_tokens)
    assert (ended.dataset_statistics.num_train, ended.dataset_statistics.num_validation) == (18, 2)
    assert ended.progress.step == 6
    assert ended.attempt == 1
    assert await watched(training, job.name, after=events[-3].number) == events[-2:]

    version = (await training.prompts.GetPromptVersion(prompts_pb2.GetPromptVersionRequest(name="support-tone"))).version
    assert version.name == ended.result.version
    assert version.digest == ended.result.digest
    assert version.job == job.name
    assert version.num_virtual_tokens == 6
    assert version.base_model.id == "tiny"
    blob = decode_blob(open_store(training.settings.resolved_store_url).fetch(version.digest))
    assert blob.manifest.golden
    assert (await training.tuning.GetServiceInfo(pb.GetServiceInfoRequest())).num_workers == 1


async def test_two_jobs_train_together_and_a_second_version_follows_the_first(training: RunningTrainer) -> None:
    short = pb.Hyperparameters(num_steps=3, num_virtual_tokens=4)
    first, other = await asyncio.gather(
        create_job(training, hyperparameters=short),
        create_job(training, prompt="parity", dataset=inline(classification_examples()), hyperparameters=short),
    )
    ended = [events[-1].state_changed for events in await asyncio.gather(watched(training, first.name), watched(training, other.name))]
    assert [job.state for job in ended] == [pb.TuningJob.STATE_SUCCEEDED] * 2
    assert 0 <= ended[1].result.metrics["accuracy"] <= 1
    init = pb.PromptInit(source="support-tone")
    third = await create_job(training, hyperparameters=pb.Hyperparameters(num_steps=3, init=init))
    result = (await watched(training, third.name))[-1].state_changed.result
    assert result.version == "prompts/support-tone/versions/2"
    assert result.current_metrics
    version = (await training.prompts.GetPromptVersion(prompts_pb2.GetPromptVersionRequest(name="support-tone"))).version
    assert version.parent == "prompts/support-tone/versions/1"


async def cancelled(trainer: RunningTrainer, name: str) -> None:
    await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=name))
    assert (await watched(trainer, name))[-1].state_changed.state == pb.TuningJob.STATE_CANCELLED


async def test_a_running_job_is_cancelled_at_its_next_step(training: RunningTrainer) -> None:
    job = await create_job(training, hyperparameters=pb.Hyperparameters(num_steps=100_000))
    await first_step(training.tuning, job.name)
    await cancelled(training, job.name)


async def test_a_drained_job_is_queued_again_and_goes_on_after_the_restart(settings: TrainerSettings) -> None:
    async with running_trainer(settings, local_pool) as trainer:
        job = await create_job(trainer, hyperparameters=pb.Hyperparameters(num_steps=100_000, num_virtual_tokens=4))
        before = await first_step(trainer.tuning, job.name)
    async with running_trainer(settings, local_pool) as trainer:
        resumed = await first_step(trainer.tuning, job.name, attempt=2)
        assert resumed.progress.step >= before.progress.step
        now = (await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=job.name))).job
        assert (now.state, now.attempt) == (pb.TuningJob.STATE_RUNNING, 2)
        await cancelled(trainer, job.name)
