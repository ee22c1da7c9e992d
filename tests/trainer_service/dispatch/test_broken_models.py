"""A base model that can't be loaded: its jobs fail with the reason, jobs of other models continue, and it recovers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.caller import Caller, Tenant, calling
from shared.errors import InvalidInput, PreconditionFailed
from tests.trainer_service.builders import BASE_MODEL, spec
from tests.trainer_service.job_service import Service
from tests.trainer_service.local_pool import LocalPool
from tests.trainer_service.scripted import ScriptedTrainer
from trainer_service.cluster.interface import WorkerLost
from trainer_service.jobs.admission import SpecAdmission
from trainer_service.jobs.model import EffectiveSpec, StoredSpec
from trainer_service.jobs.states import JobState

BROKEN = {"max_model_failures": 3, "broken_model_seconds": 0.1, "retry_max_seconds": 0.05}


class AdmitForPrompt(SpecAdmission):
    """A prompt's name begins with the id of its base model."""

    def __init__(self, admission: Any) -> None:
        self._admission = admission

    async def check(self, spec: StoredSpec, unstored: object = None) -> EffectiveSpec:
        found: EffectiveSpec = await self._admission.check(spec)
        return found.model_copy(update={"base_model": replace(BASE_MODEL, id=spec.prompt.partition("-")[0])})

    async def check_form(self, spec: StoredSpec) -> None:
        """Accepts every spec."""


class Weights:
    """Model `bad` can't be read while it is broken."""

    def __init__(self, service: Service) -> None:
        self.broken, self.tries = True, 0
        self._trainers = service.trainers

    def load(self, base_model: str) -> tuple[ScriptedTrainer, dict[str, str]]:
        if base_model == "bad" and self.broken:
            self.tries += 1
            raise PreconditionFailed("the weights are damaged")
        self._trainers.append(ScriptedTrainer())
        return self._trainers[-1], {}


async def test_jobs_of_a_broken_base_model_fail_and_others_go_on(service: Service) -> None:
    weights = Weights(service)
    manager = await service.start(pool=LocalPool(weights.load), max_workers=1, **BROKEN)
    manager._admission = AdmitForPrompt(manager._admission)
    bad = [await manager.create(spec(prompt="bad-one")) for _ in range(3)]
    good = await manager.create(spec(prompt="good-one"))
    await service.state(good.id, JobState.SUCCEEDED)
    for job in bad:
        failed = await service.state(job.id, JobState.FAILED)
        assert failed.error is not None
        assert (failed.error.code, failed.error.field) == ("BASE_MODEL_FAILED", "spec.base_model")
        assert "'bad'" in failed.error.message
        assert "the weights are damaged" in failed.error.message
        assert failed.attempt == 0
    assert weights.tries >= 3
    weights.broken = False
    again = await manager.create(spec(prompt="bad-one"))
    await service.state(again.id, JobState.SUCCEEDED)


class NoCapacity(LocalPool):
    """The cluster has no room for the first workers."""

    launches = 0

    async def launch(self, base_model: str) -> Any:
        self.launches += 1
        if self.launches <= 8:
            raise WorkerLost("the cluster has no place for it")
        return await super().launch(base_model)


async def test_a_cluster_without_room_fails_no_job(service: Service) -> None:
    pool = NoCapacity(service._load)
    manager = await service.start(pool=pool, **BROKEN)
    job = await manager.create(spec())
    await service.state(job.id, JobState.SUCCEEDED)
    assert pool.launches == 9


async def test_a_priority_above_the_tenants_is_refused(service: Service) -> None:
    manager = await service.start()
    with calling(Caller("ann", frozenset(), group=Tenant("acme", max_priority=10))):
        with pytest.raises(InvalidInput, match=r"spec\.priority: 11 is more than .* 10"):
            await manager.create(spec(priority=11))
        assert (await manager.create(spec(priority=10))).spec.priority == 10
