"""A prompt store that is away while jobs publish."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from shared.errors import Unavailable
from shared.store.local import LocalBackend
from shared.store.store import PromptStore, PublishedVersion
from tests.trainer_service.builders import spec
from tests.trainer_service.dispatch.test_faults import notes
from tests.trainer_service.job_service import Service
from trainer_service.jobs.states import JobState


class Flaky(PromptStore):
    """A store whose publications fail before or after they take effect."""

    def __init__(self, directory: Path) -> None:
        super().__init__(LocalBackend(directory))
        self.failing = True
        self.lose_the_answer = False
        self.attempts = 0

    def publish(self, *args: object, **options: object) -> PublishedVersion:
        if self.failing and self.lose_the_answer:
            super().publish(*args, **options)  # type: ignore[arg-type]
        self.attempts += 1
        if self.failing:
            raise Unavailable("the store is unavailable")
        return super().publish(*args, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("lose_the_answer", [False, True])
async def test_a_trained_job_waits_for_the_prompt_store(service: Service, lose_the_answer: bool) -> None:
    store = Flaky(service.directory / "prompts")
    store.lose_the_answer = lose_the_answer
    manager = await service.start(prompt_store=store)
    job = await manager.create(spec())
    while store.attempts < 3:
        await asyncio.sleep(0.01)
    assert (await manager.get(job.id)).state is JobState.RUNNING
    store.failing = False
    await service.state(job.id, JobState.SUCCEEDED)
    assert service.versions("tone") == [1]
    assert sum("will be published later" in note for note in await notes(service, job.id)) == 1


@pytest.mark.parametrize("lose_the_answer", [False, True])
async def test_a_crash_between_training_and_publication_publishes_once_and_trains_no_more(
    service: Service, lose_the_answer: bool
) -> None:
    store = Flaky(service.directory / "prompts")
    store.lose_the_answer = lose_the_answer
    manager = await service.start(prompt_store=store)
    job = await manager.create(spec(num_steps=5))
    while store.attempts < 2:
        await asyncio.sleep(0.01)
    await service.crash()
    num_steps = sum(len(trainer.log) for trainer in service.trainers)
    await service.start()
    done = await service.state(job.id, JobState.SUCCEEDED)
    assert done.result is not None
    assert done.result.version == "prompts/tone/versions/1"
    assert service.versions("tone") == [1]
    assert sum(len(trainer.log) for trainer in service.trainers) == num_steps == 5


async def test_cancelling_while_the_prompt_store_is_away(service: Service) -> None:
    """If nothing was published, the job is cancelled; if only the answer was lost, it has succeeded."""
    store = Flaky(service.directory / "prompts")
    manager = await service.start(prompt_store=store)
    for lose_the_answer, end in ((False, JobState.CANCELLED), (True, JobState.SUCCEEDED)):
        store.lose_the_answer, store.attempts = lose_the_answer, 0
        job = await manager.create(spec(prompt="away"))
        while store.attempts < 1:
            await asyncio.sleep(0.01)
        assert (await manager.cancel(job.id)).state in (JobState.CANCELLING, end)
        await service.state(job.id, end)
    assert service.versions("away") == [1]


async def test_a_lost_outcome_is_trained_again(service: Service) -> None:
    store = Flaky(service.directory / "prompts")
    manager = await service.start(prompt_store=store)
    job = await manager.create(spec())
    while store.attempts < 1:
        await asyncio.sleep(0.01)
    await service.crash()
    shutil.rmtree(service.directory / "checkpoints" / job.id)
    await service.start()
    await service.state(job.id, JobState.SUCCEEDED)
    assert service.versions("tone") == [1]
