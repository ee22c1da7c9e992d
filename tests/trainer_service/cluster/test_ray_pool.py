"""The pool's records of its workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.model.models_file import ModelsFile
from tests.trainer_service.cluster.conftest import SharedCluster
from tests.waiting import until
from trainer_service.cluster.interface import WorkerLost
from trainer_service.cluster.ray_cluster import RayCluster
from trainer_service.cluster.ray_pool import RayPool, actor_options
from trainer_service.cluster.settings import WorkerSettings


def models_file(path: Path, **workers: Any) -> ModelsFile:
    path.write_text(json.dumps({"models": [{"id": "tiny", "source": "x", "dtype": "bfloat16", "workers": workers}]}))
    return ModelsFile(path)


def test_each_model_asks_ray_for_its_own_resources(tmp_path: Path) -> None:
    wanted = {
        "num_gpus": 0.5,
        "num_cpus": 3,
        "memory_bytes": 1 << 30,
        "accelerator_type": "H100",
        "ray_resources": {"nvme": 2},
        "ray_labels": {"zone": "in(a,b)"},
    }
    models = models_file(tmp_path / "models.json", **wanted)
    pool = RayPool(RayCluster("head:1"), {"tiny": "x", "other": "y"}, WorkerSettings(device="cuda"), models)
    spec, other = pool._spec("tiny"), pool._spec("other")
    assert (spec.settings.dtype, spec.num_gpus, spec.num_threads) == ("bfloat16", 0.5, 3)
    assert (other.settings.dtype, other.num_gpus, other.settings.device) == ("auto", 1, "cuda")
    assert actor_options(spec, models.workers("tiny"), ["n1"]) == {
        "num_gpus": 0.5,
        "num_cpus": 3.0,
        "memory": 1 << 30,
        "accelerator_type": "H100",
        "resources": {"nvme": 2.0},
        "label_selector": {"zone": "in(a,b)", "ray.io/node-id": "!in(n1)"},
    }
    assert actor_options(other, models.workers("other")) == {"num_gpus": 1, "num_cpus": 1}
    on_cpu = RayPool(RayCluster("head:1"), {"tiny": "x"}, WorkerSettings(device="cuda"))
    on_cpu._models = models_file(tmp_path / "models.json", num_gpus=0)
    assert (on_cpu._spec("tiny").settings.device, on_cpu._spec("tiny").num_gpus) == ("cpu", 0)


@pytest.mark.ray
async def test_ray_places_workers_by_their_models_resources_and_each_is_ended_once(
    ray_cluster: SharedCluster, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray takes the options; a worker that a machine can never have is refused."""
    import ray

    killed, kill = list[Any](), ray.kill

    def note(actor: Any, **options: Any) -> None:
        killed.append(actor)
        kill(actor, **options)

    monkeypatch.setattr(ray, "kill", note)
    settings = WorkerSettings(dtype="float32", device="cpu", cpus_per_worker=1)
    fits = models_file(tmp_path / "a.json", num_cpus=1, memory_bytes=1 << 27, ray_labels={"nothing": "!x"})
    pool = RayPool(ray_cluster, {"tiny": str(tiny_model_dir)}, settings, fits)
    free = ray.available_resources()["memory"]
    first, second = await pool.launch("tiny"), await pool.launch("tiny")
    await until(lambda: ray.available_resources()["memory"] <= free - 2 * (1 << 27))
    await first.close()
    assert pool._workers == {second}
    unfit = models_file(tmp_path / "b.json", num_cpus=1, ray_resources={"nvme": 1})
    lacking = RayPool(ray_cluster, {"tiny": str(tiny_model_dir)}, settings, unfit)
    with pytest.raises(WorkerLost, match="a worker of base model 'tiny' needs 1 nvme, and this machine has 0"):
        await lacking.launch("tiny")
    await pool.close()
    await lacking.close()
    assert (len(killed), pool._workers) == (2, set())
