"""From examples to a published version through a real channel, with the real cohort in a worker of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import grpc
import pytest
import torch
from prompttuning.v1 import prompts_pb2
from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import InvalidInput, NotFound, PreconditionFailed
from shared.prompt.blob import decode_blob
from shared.store import open_store
from shared.values.enums import InitMethod, JobState
from shared.values.hyperparameters import Hyperparameters, Init
from shared.values.spec import TuningSpec
from softprompt.client.async_client import AsyncClient
from softprompt.errors import JobFailed
from softprompt.types.events import Evaluated
from tests.tiny_models import FLOAT32
from tests.trainer_service.conftest import RunningTrainer, running_trainer
from tests.trainer_service.local_pool import LocalPool
from tests.trainer_service.requests import classification_examples, create_job, first_step, inline
from trainer_service.cluster.memory import measure_memory
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.cluster.worker_init import WorkerSpec, load_trainer
from trainer_service.config import TrainerSettings

EXAMPLES = [{"input": f"number {number}", "output": f"it is {number}"} for number in range(20)]


def local_pool(settings: TrainerSettings) -> LocalPool:
    sources = {source.id: source.source for source in settings.sources}
    threads = torch.get_num_threads()
    workers = WorkerSettings.of(settings).model_copy(update=FLOAT32.model_dump())
    return LocalPool(
        lambda id: load_trainer(WorkerSpec(id, sources[id], workers, num_threads=threads)),
        measure_memory=measure_memory,
    )


@pytest.fixture
async def training(settings: TrainerSettings) -> AsyncIterator[RunningTrainer]:
    async with running_trainer(settings, local_pool) as running:
        yield running


async def watched(trainer: RunningTrainer, name: str, after: int = 0) -> list[pb.TuningEvent]:
    watch = trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=name, after=after))
    return [response.event async for response in watch if not response.event.HasField("heartbeat")]


async def test_a_job_is_trained_evaluated_published_and_reported(training: RunningTrainer) -> None:
    job = await create_job(
        training, hyperparameters=pb.Hyperparameters(num_steps=6, num_virtual_tokens=6, evaluation_interval_steps=2)
    )
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
    assert [one.rival for one in ended.result.comparisons] == ["bare_model", "instructed_model", "few_shot_model"]
    assert {(one.num_examples, one.beats) for one in ended.result.comparisons} == {(2, False)}
    assert ended.result.instructed_metrics["loss"] > 0
    assert ended.result.few_shot_metrics["loss"] > 0
    assert ended.result.num_shots > 0
    assert (ended.result.num_judging, ended.result.judged_apart) == (2, True)
    assert "2 held-out examples are too few to tell" in ended.result.verdict
    assert ended.result.verdict in [event.note for event in events]
    made = [event.progress for event in events if event.HasField("progress")]
    steps = [progress.step for progress in made if not progress.num_models]
    assert len(steps) == len(set(steps))
    measured = dict.fromkeys((progress.num_measured, progress.num_models) for progress in made if progress.num_models)
    assert list(measured) == [(number, len(measured) - 1) for number in range(len(measured))], "final evaluation"
    assert ended.progress.step == 6
    assert ended.attempt == 1
    assert await watched(training, job.name, after=events[-3].number) == events[-2:]

    version = (
        await training.prompts.GetPromptVersion(prompts_pb2.GetPromptVersionRequest(name="support-tone"))
    ).version
    assert version.name == ended.result.version
    assert version.digest == ended.result.digest
    assert version.job == job.name
    assert version.num_virtual_tokens == 6
    assert (version.gate, version.verdict) == ("no gate", ended.result.verdict)
    assert [(one.rival, one.value) for one in version.comparisons] == [
        (one.rival, one.value) for one in ended.result.comparisons
    ]
    assert version.base_model.id == "tiny"
    blob = decode_blob(open_store(training.settings.resolved_store_url).fetch(version.digest))
    assert blob.manifest.golden
    assert (await training.tuning.GetServiceInfo(pb.GetServiceInfoRequest())).num_workers == 1


async def test_keys_and_values_are_trained_published_and_trained_on(training: RunningTrainer) -> None:
    """Trains from a soft prompt's keys and values, then from the resulting version."""
    short = pb.Hyperparameters(num_steps=4, num_virtual_tokens=4, evaluation_interval_steps=2)
    prompt = await create_job(training, hyperparameters=short)
    await watched(training, prompt.name)
    start = pb.PromptInit(source="support-tone@1")
    lifted = await create_job(
        training, hyperparameters=pb.Hyperparameters(num_steps=4, init=start, kind=pb.PREFIX_KIND_PREFIX)
    )
    first = (await watched(training, lifted.name))[-1].state_changed
    assert first.result.version == "prompts/support-tone/versions/2", first.error
    assert not first.result.nearest_tokens, "keys and values are near no token"
    on = await create_job(
        training, hyperparameters=pb.Hyperparameters(num_steps=2, init=pb.PromptInit(source="support-tone@2"))
    )
    assert on.effective_spec.hyperparameters.kind == pb.PREFIX_KIND_PREFIX
    assert on.effective_spec.hyperparameters.num_virtual_tokens == 4
    assert (await watched(training, on.name))[-1].state_changed.result.version == "prompts/support-tone/versions/3"
    store = open_store(training.settings.resolved_store_url)
    for number, kind in ((1, "PROMPT"), (2, "PREFIX"), (3, "PREFIX")):
        request = prompts_pb2.GetPromptVersionRequest(name=f"prompts/support-tone/versions/{number}")
        version = (await training.prompts.GetPromptVersion(request)).version
        assert (version.kind, decode_blob(store.fetch(version.digest)).prefix.num_virtual_tokens) == (kind, 4)
    with pytest.raises(grpc.aio.AioRpcError, match="has keys and values: use PREFIX") as refused:
        await create_job(
            training,
            hyperparameters=pb.Hyperparameters(init=pb.PromptInit(source="support-tone@2"), kind=pb.PREFIX_KIND_PROMPT),
        )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_search_is_reported_in_job_note_and_manifest(training: RunningTrainer) -> None:
    settings = pb.Hyperparameters(num_steps=8, num_virtual_tokens=4, evaluation_interval_steps=8, search=True)
    job = await create_job(training, dataset=inline(classification_examples()), hyperparameters=settings)
    events = await watched(training, job.name)
    result = events[-1].state_changed.result
    assert len(result.candidates) == 6
    (chosen,) = [one for one in result.candidates if one.chosen]
    method = pb.PromptInit.Method.Name(chosen.init_method).removeprefix("METHOD_")
    assert f"the search chose learning rate {chosen.learning_rate:g} and init {method} of 6 candidates" in [
        event.note for event in events
    ]
    version = (
        await training.prompts.GetPromptVersion(prompts_pb2.GetPromptVersionRequest(name="support-tone"))
    ).version
    assert version.recipe["hyperparameters"]["learning_rate"] == pytest.approx(chosen.learning_rate)
    assert len(version.recipe["candidates"]) == 6
    assert version.recipe["candidates"][0]["losses"] == pytest.approx(list(result.candidates[0].losses))


async def test_two_jobs_train_together_and_a_second_version_follows_the_first(training: RunningTrainer) -> None:
    short = pb.Hyperparameters(num_steps=3, num_virtual_tokens=4)
    first, other = await asyncio.gather(
        create_job(training, hyperparameters=short),
        create_job(training, prompt="parity", dataset=inline(classification_examples()), hyperparameters=short),
    )
    ended = [
        events[-1].state_changed
        for events in await asyncio.gather(watched(training, first.name), watched(training, other.name))
    ]
    assert [job.state for job in ended] == [pb.TuningJob.STATE_SUCCEEDED] * 2
    assert 0 <= ended[1].result.metrics["accuracy"] <= 1
    init = pb.PromptInit(source="support-tone")
    third = await create_job(training, hyperparameters=pb.Hyperparameters(num_steps=3, init=init))
    result = (await watched(training, third.name))[-1].state_changed.result
    assert result.version == "prompts/support-tone/versions/2"
    assert result.current_metrics
    version = (
        await training.prompts.GetPromptVersion(prompts_pb2.GetPromptVersionRequest(name="support-tone"))
    ).version
    assert version.parent == "prompts/support-tone/versions/1"


async def cancelled(trainer: RunningTrainer, name: str) -> None:
    await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=name))
    assert (await watched(trainer, name))[-1].state_changed.state == pb.TuningJob.STATE_CANCELLED


async def test_a_running_job_is_cancelled_at_its_next_step(training: RunningTrainer) -> None:
    job = await create_job(training, hyperparameters=pb.Hyperparameters(num_steps=100_000))
    await first_step(training.tuning, job.name)
    await cancelled(training, job.name)


async def test_a_cancelled_jobs_best_prompt_is_kept_and_another_job_goes_on_from_it(settings: TrainerSettings) -> None:
    long = Hyperparameters(num_steps=100_000, num_virtual_tokens=5, evaluation_interval_steps=1)
    async with running_trainer(settings, local_pool) as trainer, AsyncClient(f"127.0.0.1:{trainer.port}") as client:
        spec = TuningSpec(prompt="tone", dataset=EXAMPLES, hyperparameters=long, annotations={"team": "web"})
        job = await client.create_job(spec)
        async for event in client.watch_job(job.name):
            if isinstance(event, Evaluated) and event.step > 0 and event.is_best:
                break
        with pytest.raises(PreconditionFailed, match="has no prompt to start from"):
            await client.continue_job(job.name)
        await client.cancel_job(job.name)
        with pytest.raises(JobFailed):
            await client.wait_for_job(job.name)
        job = await client.get_job(job.name)
        assert (job.state, job.best_prompt_kept, job.result) == (JobState.CANCELLED, True, None)

    async with running_trainer(settings, local_pool) as trainer, AsyncClient(f"127.0.0.1:{trainer.port}") as client:
        more = [*EXAMPLES, *({"input": f"more {number}", "output": "maybe"} for number in range(10))]
        short = Hyperparameters(num_steps=2, learning_rate=1e-4)
        going_on = await client.continue_job(job.name, dataset=more, hyperparameters=short)
        assert going_on.spec is not None
        assert going_on.spec.annotations == {"team": "web"}
        await client.delete_job(job.name)
        done = await client.wait_for_job(going_on.name)
        assert done.result is not None
        assert done.result.version == "prompts/tone/versions/1"
        assert done.effective_spec is not None
        assert done.effective_spec.hyperparameters is not None
        assert done.effective_spec.hyperparameters.num_virtual_tokens == 5, "as many as it starts from"
        assert done.dataset_statistics is not None
        assert done.dataset_statistics.num_train + done.dataset_statistics.num_validation == len(more)

        again = await client.continue_job(done.name, prompt="second")
        assert again.spec is not None
        assert again.spec.hyperparameters is not None
        assert again.spec.hyperparameters.init == Init(InitMethod.FROM_PROMPT, source="prompts/tone/versions/1")
        done = await client.wait_for_job(again.name)
        clone = await client.clone_job(done.name, priority=5, hyperparameters=Hyperparameters(num_steps=1))
        assert clone.spec is not None
        assert (clone.spec.priority, clone.spec.hyperparameters) == (
            5,
            replace(again.spec.hyperparameters, num_steps=1),
        )
        with pytest.raises(InvalidInput, match="not a field"):
            await client.clone_job(done.name, steps=4)
        source = Hyperparameters(num_steps=1, init=Init(InitMethod.FROM_PROMPT, source=done.name))
        with pytest.raises(PreconditionFailed, match=r"start from its version prompts/second/versions/1"):
            await client.clone_job(done.name, hyperparameters=source)
        with pytest.raises(NotFound):
            await client.clone_job(
                done.name, hyperparameters=Hyperparameters(init=Init(InitMethod.FROM_PROMPT, source=job.name))
            )


async def test_a_deadline_that_has_passed_is_refused(training: RunningTrainer) -> None:
    with pytest.raises(InvalidInput, match="deadline: has passed"):
        async with AsyncClient(f"127.0.0.1:{training.port}") as client:
            await client.create_job(
                TuningSpec(prompt="tone", dataset=EXAMPLES, deadline=datetime(2020, 1, 1, tzinfo=UTC))
            )


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
