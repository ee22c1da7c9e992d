"""The pool's records of its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer_service.cluster.conftest import SharedCluster
from trainer_service.cluster.ray_pool import RayPool
from trainer_service.cluster.settings import WorkerSettings


@pytest.mark.ray
async def test_a_worker_is_ended_once(
    ray_cluster: SharedCluster, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    killed, kill = list[Any](), ray.kill

    def note(actor: Any, **options: Any) -> None:
        killed.append(actor)
        kill(actor, **options)

    monkeypatch.setattr(ray, "kill", note)
    pool = RayPool(
        ray_cluster, {"tiny": str(tiny_model_dir)}, WorkerSettings(dtype="float32", device="cpu", cpus_per_worker=1)
    )
    first, second = await pool.launch("tiny"), await pool.launch("tiny")
    await first.close()
    assert pool._workers == {second}
    await pool.close()
    assert (len(killed), pool._workers) == (2, set())
