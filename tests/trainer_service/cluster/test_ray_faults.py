"""Real workers on a real Ray, with a real cohort on a tiny model, and real kills."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from shared import base_model
from shared.blob import decode_blob
from tests.trainer_service.cluster.conftest import SharedCluster
from tests.trainer_service.jobs.builders import effective_spec, spec
from tests.trainer_service.jobs.conftest import Service
from trainer_service.cluster.interface import WorkerLost
from trainer_service.cluster.ray_pool import RayPool, RayPoolConfig
from trainer_service.jobs.model import Job, Note
from trainer_service.jobs.states import JobState

pytestmark = pytest.mark.ray


@pytest.fixture
def pool(ray_cluster: SharedCluster, tiny_model_dir: Path) -> RayPool:
    config = RayPoolConfig({"tiny": str(tiny_model_dir)}, dtype="float32", device="cpu", max_workers=2, checkpoint_seconds=0.2)
    return RayPool(ray_cluster, config)


@pytest.fixture
async def service(tmp_path: Path, tiny_model_dir: Path, pool: RayPool) -> AsyncIterator[Service]:
    made = Service(tmp_path, effective_spec(base_model.inspect(tiny_model_dir, id="tiny")))
    yield made
    await made.drain()


async def pid_of(pool: RayPool) -> int:
    """The process of the pool's only living worker."""
    for worker in pool._workers:
        try:
            return int((await worker.poll(0, 0)).details["pid"])
        except WorkerLost:
            continue
    raise AssertionError("no worker lives")


async def test_a_killed_worker_costs_nothing_but_the_steps_since_the_checkpoint(service: Service, pool: RayPool) -> None:
    manager = await service.start(pool)
    job = await manager.create(spec(num_steps=400))
    await service.until(job.id, lambda job: job.progress.step > 40, seconds=60)
    before = await pid_of(pool)
    os.kill(before, signal.SIGKILL)
    done = await service.state(job.id, JobState.SUCCEEDED, seconds=60)
    assert done.attempt == 2
    assert service.versions("tone") == [1]
    events = [event.payload async for event in manager.watch(job.id)]
    notes = [payload.text for payload in events if isinstance(payload, Note)]
    assert any("lost its worker" in note for note in notes)
    resumed = [int(note.rpartition(" ")[2]) for note in notes if note.startswith("goes on from step")]
    assert len(resumed) == 1
    assert resumed[0] > 0
    states = [payload.state for payload in events if isinstance(payload, Job)]
    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
    assert not psutil.pid_exists(before)

    record = service.prompt_store.refresh().prompt("tone").version(1)
    manifest = decode_blob(service.prompt_store.fetch(record.digest)).manifest
    assert manifest.job == job.name
    assert manifest.golden


async def test_a_restarted_service_goes_on_where_it_was(service: Service, pool: RayPool) -> None:
    manager = await service.start(pool)
    jobs = [await manager.create(spec(num_steps=300, prompt=f"p-{number}")) for number in range(3)]
    for job in jobs:
        await service.until(job.id, lambda job: job.progress.step > 20, seconds=60)
    await service.crash()
    await service.start(RayPool(pool._cluster, pool._config))
    for job in jobs:
        done = await service.state(job.id, JobState.SUCCEEDED, seconds=60)
        assert done.attempt == 2
        assert service.versions(done.spec.prompt) == [1]


async def test_drain_checkpoints_and_the_next_service_finishes(service: Service, pool: RayPool) -> None:
    manager = await service.start(pool)
    job = await manager.create(spec(num_steps=300))
    await service.until(job.id, lambda job: job.progress.step > 20, seconds=60)
    await service.drain()
    manager = await service.start(RayPool(pool._cluster, pool._config))
    done = await service.state(job.id, JobState.SUCCEEDED, seconds=60)
    assert done.failures == 0
    steps = [event.payload.step async for event in manager.watch(job.id) if hasattr(event.payload, "train_loss")]
    assert steps == sorted(steps), "no step was done twice"


async def test_every_worker_is_gone_after_drain(service: Service, pool: RayPool) -> None:
    manager = await service.start(pool)
    job = await manager.create(spec("forever", num_steps=100_000))
    await service.until(job.id, lambda job: job.progress.step > 2, seconds=60)
    pid = await pid_of(pool)
    await manager.cancel(job.id)
    await service.state(job.id, JobState.CANCELLED, seconds=30)
    await service.drain()
    async with asyncio.timeout(15):
        while psutil.pid_exists(pid):
            await asyncio.sleep(0.05)
