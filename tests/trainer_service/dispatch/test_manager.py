"""The life of jobs under the manager, with workers that are threads and stores that are real."""

from __future__ import annotations

import asyncio

import pytest

from shared.caller import Caller, calling
from shared.errors import Conflict, NotFound, Overloaded, PreconditionFailed
from shared.values.results import TuningProgress
from shared.values.spec import PublishGate, PublishPolicy
from tests.trainer_service.builders import spec
from tests.trainer_service.job_service import Service
from trainer_service.jobs.model import (
    Evaluation,
    Job,
    JobEventKind,
    JobFilter,
    JobOrder,
    Note,
)
from trainer_service.jobs.states import JobState


async def test_a_job_is_trained_and_published(service: Service) -> None:
    manager = await service.start()
    created = await manager.create(spec(num_steps=7))
    assert created.state is JobState.QUEUED
    job = await service.state(created.id, JobState.SUCCEEDED)
    assert job.result is not None
    assert (job.result.published, job.result.version, job.result.alias_moved) == (True, "prompts/tone/versions/1", True)
    assert job.progress.step == job.progress.num_steps == 7
    assert job.dataset_statistics is not None
    assert job.dataset_statistics.num_train + job.dataset_statistics.num_validation == 12
    assert service.versions("tone") == [1]
    assert service.prompt_store.index().prompt("tone").aliases["default"].targets[0].version == 1
    while any((service.directory / "checkpoints").iterdir()):
        await asyncio.sleep(0.01)


async def test_a_watcher_sees_every_event_once_and_then_the_end(service: Service) -> None:
    manager = await service.start()
    job = await manager.create(spec(num_steps=5))
    events = [event async for event in manager.watch(job.id)]
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    states = [event.payload.state for event in events if isinstance(event.payload, Job)]
    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
    assert {event.kind for event in events} >= {JobEventKind.PROGRESS, JobEventKind.EVALUATION, JobEventKind.CHECKPOINT}
    steps = [event.payload.step for event in events if isinstance(event.payload, TuningProgress)]
    assert (steps[-1], len(steps)) == (5, len(set(steps))), "each step is reported once"
    assert [event.payload.metrics["loss"] for event in events if isinstance(event.payload, Evaluation)] == [0.2]

    resumed = [event async for event in manager.watch(job.id, after=3)]
    assert resumed == events[3:]
    assert [event async for event in manager.watch(job.id, after=events[-1].number)] == []


async def test_the_same_request_makes_one_job(service: Service) -> None:
    manager = await service.start()
    first = await manager.create(spec(), request_id="r-1")
    assert (await manager.create(spec(), request_id="r-1")).id == first.id
    with calling(Caller("bob", frozenset())):
        assert (await manager.create(spec(), request_id="r-1")).id != first.id
    with pytest.raises(Conflict):
        await manager.create(spec(prompt="other"), request_id="r-1")


async def test_a_full_queue_says_when_to_come_back(service: Service) -> None:
    manager = await service.start(max_queued_jobs=2, max_workers=1, max_jobs_per_worker=1)
    running = await manager.create(spec("forever", num_steps=1000))
    await service.state(running.id, JobState.RUNNING)
    jobs = [await manager.create(spec()) for _ in range(2)]
    assert [(await manager.get(job.id)).queue_position for job in jobs] == [0, 1]
    with pytest.raises(Overloaded) as refused:
        await manager.create(spec())
    assert refused.value.retry_after_seconds > 0


async def test_cancel_on_a_worker_and_in_the_queue(service: Service) -> None:
    manager = await service.start(max_jobs_per_worker=1)
    running = await manager.create(spec("forever", num_steps=1000))
    await service.until(running.id, lambda job: job.progress.step > 2)
    waiting = await manager.create(spec())
    assert (await manager.cancel(waiting.id)).state is JobState.CANCELLED
    assert (await manager.cancel(running.id)).state in (JobState.CANCELLING, JobState.CANCELLED)
    job = await service.state(running.id, JobState.CANCELLED)
    assert job.end_time is not None
    assert job.keeps_best_prompt
    assert not (await manager.get(waiting.id)).keeps_best_prompt
    notes = [event.payload.text async for event in manager.watch(running.id) if isinstance(event.payload, Note)]
    assert any("its checkpoint is kept" in note for note in notes)
    kept = service.directory / "checkpoints" / running.id / "checkpoint"
    assert kept.is_file()
    assert (await manager.cancel(running.id)).state is JobState.CANCELLED
    assert service.versions("tone") == []
    done = await manager.create(spec())
    await service.state(done.id, JobState.SUCCEEDED)
    with pytest.raises(PreconditionFailed) as refused:
        await manager.cancel(done.id)
    assert refused.value.metadata["state"] == "SUCCEEDED"


async def test_pause_keeps_the_steps_and_resume_goes_on(service: Service) -> None:
    manager = await service.start()
    job = await manager.create(spec("forever", num_steps=120))
    await service.until(job.id, lambda job: job.progress.step > 3)
    assert (await manager.pause(job.id)).state in (JobState.RUNNING, JobState.PAUSED)
    paused = await service.state(job.id, JobState.PAUSED)
    assert 3 < paused.progress.step < 120
    assert (await manager.pause(job.id)).state is JobState.PAUSED
    resumed = await manager.resume(job.id)
    assert resumed.state in (JobState.QUEUED, JobState.RUNNING)
    service.finish.set()
    await service.state(job.id, JobState.SUCCEEDED)
    steps = [step for trainer in service.trainers for _, _, step in trainer.log]
    assert steps == list(range(1, 121)), "no step was done twice or left out"


async def test_a_users_error_fails_at_once_and_alone(service: Service) -> None:
    manager = await service.start()
    bad, good = await manager.create(spec("nan")), await manager.create(spec("plain"))
    failed = await service.state(bad.id, JobState.FAILED)
    assert failed.error is not None
    assert (failed.error.code, failed.error.field) == ("NAN_LOSS", "spec.hyperparameters.learning_rate")
    assert failed.attempt == 1
    await service.state(good.id, JobState.SUCCEEDED)


async def test_a_dataset_that_is_gone_fails_the_job(service: Service) -> None:
    manager = await service.start()
    job = await manager.create(spec("gone"))
    failed = await service.state(job.id, JobState.FAILED)
    assert failed.error is not None
    assert (failed.error.code, failed.error.field) == ("BAD_DATA", "spec.dataset")


async def test_a_job_that_does_not_fit_beside_others_goes_alone(service: Service) -> None:
    manager = await service.start()
    beside = await manager.create(spec("forever", num_steps=100_000))
    await service.until(beside.id, lambda job: job.progress.step > 2)
    jobs = [await manager.create(spec("oom")) for _ in range(2)]
    await service.until(jobs[0].id, lambda now: now.attempt == 1 and now.state is JobState.QUEUED)
    await manager.cancel(beside.id)
    first, second = [(await service.state(job.id, JobState.SUCCEEDED)).attempt for job in jobs]
    assert first == 2
    assert second in (1, 2), "it may have waited behind the first one"
    assert service.versions("tone") == [1, 2]


async def test_a_job_that_does_not_even_fit_alone_fails_after_one_try_alone(service: Service) -> None:
    manager = await service.start()
    beside = await manager.create(spec("forever", num_steps=100_000))
    await service.until(beside.id, lambda job: job.progress.step > 2)
    huge = await manager.create(spec("huge"))
    await service.until(huge.id, lambda job: job.attempt == 1 and job.state is JobState.QUEUED)
    await manager.cancel(beside.id)
    failed = await service.state(huge.id, JobState.FAILED)
    assert failed.error is not None
    assert (failed.error.code, failed.attempt) == ("OUT_OF_MEMORY", 2)


async def test_the_longest_runtime_ends_a_job(service: Service) -> None:
    manager = await service.start()
    job = await manager.create(spec("forever", num_steps=1000, max_runtime_seconds=0.2))
    failed = await service.state(job.id, JobState.FAILED)
    assert failed.error is not None
    assert failed.error.code == "MAX_RUNTIME"
    assert failed.runtime_seconds >= 0.2


async def test_a_gate_that_is_not_met_publishes_nothing_and_says_why(service: Service) -> None:
    manager = await service.start()
    gate = PublishGate(beat_bare_model=True, minimum_metric=0.001)
    job = await manager.create(spec(publish=PublishPolicy(gate=gate)))
    done = await service.state(job.id, JobState.SUCCEEDED)
    assert done.result is not None
    assert not done.result.published
    assert "0.001" in done.result.gate_decision
    assert service.versions("tone") == []


async def test_publishing_may_move_no_alias(service: Service) -> None:
    manager = await service.start()
    job = await manager.create(spec(publish=PublishPolicy(alias="-")))
    done = await service.state(job.id, JobState.SUCCEEDED)
    assert done.result is not None
    assert (done.result.published, done.result.alias_moved) == (True, False)
    assert not service.prompt_store.refresh().prompt("tone").aliases


async def test_an_ended_job_can_be_deleted_and_no_other(service: Service) -> None:
    manager = await service.start()
    job = await manager.create(spec("forever"))
    with pytest.raises(PreconditionFailed):
        await manager.delete(job.id)
    service.finish.set()
    await service.state(job.id, JobState.SUCCEEDED)
    await manager.delete(job.id)
    with pytest.raises(NotFound):
        await manager.get(job.id)
    with pytest.raises(NotFound):
        await anext(manager.watch(job.id))
    assert service.versions("tone") == [1]


async def test_jobs_of_one_base_model_share_a_worker(service: Service) -> None:
    manager = await service.start(max_workers=4, max_jobs_per_worker=4)
    jobs = [await manager.create(spec(num_steps=40, prompt=f"p-{number}")) for number in range(4)]
    await asyncio.gather(*(service.state(job.id, JobState.SUCCEEDED) for job in jobs))
    assert len(service.trainers) == 1
    page = await manager.list(JobFilter(states=frozenset({JobState.SUCCEEDED})), 3)
    assert [job.id for job in page.jobs] == [job.id for job in reversed(jobs)][:3]
    assert page.next_after
    oldest = JobFilter(order=JobOrder.OLDEST_FIRST)
    page = await manager.list(oldest, 3)
    rest = await manager.list(oldest, 3, page.next_after)
    assert [job.id for job in (*page.jobs, *rest.jobs)] == [job.id for job in jobs]


async def test_an_idle_worker_is_stopped(service: Service) -> None:
    manager = await service.start(worker_idle_seconds=0.1)
    job = await manager.create(spec())
    await service.state(job.id, JobState.SUCCEEDED)
    while (await manager.counts()).num_workers:
        await asyncio.sleep(0.01)
    again = await manager.create(spec())
    await service.state(again.id, JobState.SUCCEEDED)
    assert len(service.trainers) == 2
