"""A new trainer with old Ray pods: it reports the mismatch, no job fails or hangs, and work continues when a new pod
starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.model import base_model
from tests.trainer_service.builders import effective_spec, spec
from tests.trainer_service.cluster.conftest import SharedCluster
from tests.trainer_service.job_service import Service
from tests.waiting import until
from trainer_service.cluster import ray_pool
from trainer_service.cluster.ray_cluster import RayCluster
from trainer_service.cluster.ray_pool import RayPool
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.jobs.context import JobsObserver
from trainer_service.jobs.model import Note
from trainer_service.jobs.states import JobState

pytestmark = pytest.mark.ray


@pytest.fixture
def pool(ray_cluster: SharedCluster, tiny_model_dir: Path) -> RayPool:
    return RayPool(
        ray_cluster, {"tiny": str(tiny_model_dir)}, WorkerSettings(dtype="float32", device="cpu", cpus_per_worker=1)
    )


@pytest.fixture
async def service(tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Service]:
    made = Service(tmp_path, effective_spec(base_model.inspect(tiny_model_dir, id="tiny")))
    yield made
    await made.drain()


async def test_a_node_with_other_software_gets_no_second_worker_and_jobs_wait_for_a_new_pod(
    service: Service, pool: RayPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    here = ray.get_runtime_context().get_node_id()
    failed: list[str] = []
    monkeypatch.setattr(JobsObserver, "launch_failed", lambda self, base_model, reason: failed.append(reason))
    monkeypatch.setattr(ray_pool, "software_version", lambda: "softprompt 9.9")
    manager = await service.start(pool)
    job = await manager.create(spec(num_steps=2))
    await until(lambda: "software" in failed)

    async def notes() -> list[str]:
        events = await manager._context.database.call(service.store.events, job.id, 0, 100)
        return [event.payload.text for event in events if isinstance(event.payload, Note)]

    async def has_note() -> bool:
        return bool(await notes())

    await until(has_note)
    [note] = await notes()
    assert "the trainer softprompt 9.9: use one image for both" in note
    waiting = await manager.get(job.id)
    assert (waiting.state, waiting.attempt, waiting.failures) == (JobState.QUEUED, 0, 0)
    await until(lambda: len(pool._other_nodes) == 1)
    assert pool._other_nodes == {here}
    monkeypatch.undo()
    with pytest.raises(TimeoutError):  # no node is left for it, though both have the same software now
        async with asyncio.timeout(3):
            await pool.launch("tiny")
    await manager.drain(5)
    service.manager = None  # type: ignore[assignment]
    pool._other_nodes = {"0" * len(here)}  # a new pod is a node with another id
    await service.start(pool)
    assert (await service.state(job.id, JobState.SUCCEEDED)).failures == 0


async def test_a_cluster_of_another_ray_or_python_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from shared.errors import Unavailable

    def refuse(**options: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1.0\n    Python: 3.9.1")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(Unavailable, match=r"other versions than this trainer, use one image for both[\s\S]*Ray: 2.1.0"):
        await RayCluster("10.0.0.1:6379").start()
