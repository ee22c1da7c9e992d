"""Real workers of two base models on a real Ray with room for one: which worker takes which job, and that all end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from shared.model import base_model
from shared.prompt.blob import decode_blob
from tests.tiny_models import save_tiny_llama
from tests.trainer_service import job_service
from tests.trainer_service.builders import effective_spec, spec
from tests.trainer_service.cluster.conftest import SharedCluster
from tests.trainer_service.cluster.test_ray_faults import pids_of
from tests.trainer_service.job_service import AdmitAll, Service
from trainer_service.cluster.ray_pool import RayPool
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.jobs.model import EffectiveSpec, StoredSpec
from trainer_service.jobs.states import JobState

pytestmark = pytest.mark.ray


class AdmitByModel(AdmitAll):
    async def check(self, spec: StoredSpec, unstored: object = None) -> EffectiveSpec:
        effective = await super().check(spec)
        return effective.model_copy(update={"base_model": replace(effective.base_model, id=spec.base_model)})


async def test_jobs_share_the_worker_of_their_model_which_then_makes_way(
    tmp_path: Path, tiny_model_dir: Path, ray_cluster: SharedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_service, "AdmitAll", AdmitByModel)
    models = {"tiny": str(tiny_model_dir), "other": str(save_tiny_llama(tmp_path / "other"))}
    settings = WorkerSettings(dtype="float32", device="cpu", cpus_per_worker=1, checkpoint_seconds=0.2)
    pool = RayPool(ray_cluster, models, settings)
    service = Service(tmp_path, effective_spec(base_model.inspect(tiny_model_dir, id="tiny")))
    manager = await service.start(pool, max_workers=1, worker_idle_seconds=0.5)
    seen = set[int]()
    watching = asyncio.create_task(_collect(pool, seen))
    wanted = [("tiny", "a"), ("other", "b"), ("tiny", "c")]
    jobs = [await manager.create(spec(prompt=prompt, base_model=model, num_steps=8)) for model, prompt in wanted]
    done = [await service.state(job.id, JobState.SUCCEEDED) for job in jobs]
    assert [job.attempt for job in done] == [1, 1, 1]
    for model, prompt in wanted:
        [record] = service.prompt_store.refresh().prompts[prompt].versions.values()
        assert decode_blob(service.prompt_store.fetch(record.digest)).manifest.base_model.id == model
    while any(psutil.pid_exists(pid) for pid in seen):
        await asyncio.sleep(0.05)
    watching.cancel()
    assert len(seen) == 2, "both jobs of one model had one worker, and no worker of the other model was there beside it"
    await service.drain()


async def _collect(pool: RayPool, seen: set[int]) -> None:
    while True:
        seen |= set(await pids_of(pool))
        await asyncio.sleep(0.2)
