"""A finished job moves its alias only if the alias has not been set since the job was created."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.store import AliasTarget, PromptStore
from shared.values.results import TuningResult
from shared.values.spec import PublishPolicy
from tests.shared.prompt.blobs import make_blob
from tests.trainer_service.builders import spec
from tests.trainer_service.job_service import Service
from trainer_service.jobs.model import Note
from trainer_service.jobs.states import JobState


def put_version(store: PromptStore, number: int) -> None:
    """A version that another publisher made, and that gets the default alias."""
    store.publish("tone", make_blob("tone", number), job=f"imports/{number}")


def roll_back(store: PromptStore) -> None:
    store.set_alias("tone", "default", 1)


def begin_canary(store: PromptStore) -> None:
    store.set_alias("tone", "default", [AliasTarget(1, 90), AliasTarget(2, 10)])


def remove(store: PromptStore) -> None:
    store.set_alias("tone", "default", None)


def there_and_back(store: PromptStore) -> None:
    store.set_alias("tone", "default", 1)
    store.set_alias("tone", "default", 2)


def import_another(store: PromptStore) -> None:
    put_version(store, 3)


def targets(service: Service) -> list[int]:
    alias = service.prompt_store.refresh().prompt("tone").aliases.get("default")
    return [target.version for target in alias.targets] if alias else []


async def result_of(service: Service, job_id: str) -> TuningResult:
    result = (await service.state(job_id, JobState.SUCCEEDED)).result
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("decide", "left"),
    [(roll_back, [1]), (begin_canary, [1, 2]), (remove, []), (there_and_back, [2]), (import_another, [3])],
)
async def test_a_decision_made_while_a_job_trains_is_kept(
    service: Service, decide: Callable[[PromptStore], None], left: list[int]
) -> None:
    manager = await service.start()
    put_version(service.prompt_store, 1)
    put_version(service.prompt_store, 2)
    job = await manager.create(spec("forever", num_steps=150))
    await service.until(job.id, lambda job: job.progress.step > 2)
    decide(service.prompt_store)
    service.finish.set()
    result = await result_of(service, job.id)
    assert (result.published, result.alias_moved, targets(service)) == (True, False, left)
    assert "left alone: tone@default was" in result.gate_decision
    notes = [event.payload.text async for event in manager.watch(job.id) if isinstance(event.payload, Note)]
    assert any("left alone" in note for note in notes)


async def test_a_decision_made_before_a_job_is_created_does_not_bind_it(service: Service) -> None:
    manager = await service.start()
    put_version(service.prompt_store, 1)
    put_version(service.prompt_store, 2)
    begin_canary(service.prompt_store)
    job = await manager.create(spec())
    assert (await result_of(service, job.id)).alias_moved
    assert targets(service) == [3]


async def test_of_two_jobs_the_later_one_ends_up_behind_the_alias_whichever_finishes_first(service: Service) -> None:
    manager = await service.start()
    slow, quick = await manager.create(spec("forever", num_steps=150)), await manager.create(spec())
    assert (await result_of(service, quick.id)).alias_moved
    service.finish.set()
    result = await result_of(service, slow.id)
    assert (result.alias_moved, targets(service)) == (False, [1])
    assert f"by tuningJobs/{quick.id}, which was created after this job" in result.gate_decision


async def test_a_job_takes_the_place_of_one_that_was_created_before_it(service: Service) -> None:
    manager = await service.start()
    first, second = await manager.create(spec()), await manager.create(spec("forever", num_steps=150))
    await result_of(service, first.id)
    service.finish.set()
    assert (await result_of(service, second.id)).alias_moved
    assert targets(service) == [2]


async def test_without_an_alias_none_is_left_alone(service: Service) -> None:
    manager = await service.start()
    put_version(service.prompt_store, 1)
    job = await manager.create(spec(publish=PublishPolicy(alias="-")))
    result = await result_of(service, job.id)
    assert (result.published, result.alias_moved, "left alone" in result.gate_decision) == (True, False, False)


async def test_the_decision_is_kept_when_the_trainer_restarts_meanwhile(service: Service) -> None:
    manager = await service.start()
    put_version(service.prompt_store, 1)
    put_version(service.prompt_store, 2)
    job = await manager.create(spec("forever", num_steps=150))
    await service.until(job.id, lambda job: job.checkpointed)
    roll_back(service.prompt_store)
    await service.crash()
    manager = await service.start(lease_seconds=1.0)
    await service.until(job.id, lambda job: job.attempt == 2 and job.progress.step > 2)
    service.finish.set()
    assert not (await result_of(service, job.id)).alias_moved
    assert targets(service) == [1]
