"""What a worker loads, how it spreads a model over devices, and what it measures of its memory."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from shared.errors import InvalidInput
from tests.control_groups import control_group
from tests.tiny_models import FLOAT32
from tests.trainer_service.cluster.test_ray_pool import models_file
from tests.trainer_service.cluster.test_worker import task
from trainer_service.cluster import ray_pool as ray_pool_module
from trainer_service.cluster import worker_init
from trainer_service.cluster.memory import measure_memory
from trainer_service.cluster.ray_cluster import RayCluster, short_temporary_folder
from trainer_service.cluster.ray_pool import RayPool
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.cluster.worker_init import WorkerSpec, load_trainer, load_trainer_in_background
from trainer_service.config import TrainerSettings
from trainer_service.training.events import StepDone, TrainingEvent
from trainer_service.worker_pool import ray_pool


def losses(spec: WorkerSpec) -> list[float]:
    cohort, _ = load_trainer(spec)
    cohort.add(task(num_steps=3))
    events: list[TrainingEvent] = []
    while not cohort.is_idle:
        events += cohort.step()
    return [event.loss for event in events if isinstance(event, StepDone)]


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has its own priority only on Linux")
def test_training_leaves_the_processors_to_what_must_answer(tiny_model_dir: Path) -> None:
    """Heartbeats and polls go first on a machine that has too much to do."""

    def load_and_measure() -> tuple[int, int]:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        load_trainer_in_background(WorkerSpec("tiny", str(tiny_model_dir), WorkerSettings.of(FLOAT32)))
        return before, os.getpriority(os.PRIO_PROCESS, 0)

    with ThreadPoolExecutor(1) as thread:
        before, after = thread.submit(load_and_measure).result()
    assert after == min(before + 5, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_a_model_whose_layers_lie_on_several_devices_trains_the_same(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one processor here, so the second device is the disk: what moves between devices is moved by the same
    hooks.
    """
    alone = losses(
        WorkerSpec(
            "tiny",
            str(tiny_model_dir),
            WorkerSettings.of(FLOAT32),
            num_threads=torch.get_num_threads(),
        )
    )
    from_pretrained, asked = AutoModelForCausalLM.from_pretrained, []

    def two_devices(path: Path, **options: Any) -> Any:
        asked.append(options["device_map"])
        here = dict.fromkeys(
            ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head", "model.layers.0"), "cpu"
        )
        options |= {"device_map": here | {"model.layers.1": "disk"}, "offload_folder": tmp_path}
        return from_pretrained(path, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", two_devices)
    threads = torch.get_num_threads()
    spread = losses(
        WorkerSpec("tiny", str(tiny_model_dir), WorkerSettings.of(FLOAT32), num_threads=threads, num_gpus=2)
    )
    assert asked == ["auto"]
    assert spread == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("resources", "settings", "device", "gpus", "threads"),
    [
        ({"CPU": 8.0}, {"max_workers": 2}, "cpu", 0, 4),
        ({"CPU": 8.0}, {"cpus_per_worker": 3}, "cpu", 0, 3),
        ({"CPU": 8.0, "GPU": 4.0}, {"gpus_per_worker": 2}, "cuda", 2, 8),
        ({"CPU": 8.0, "GPU": 4.0}, {"gpus_per_worker": 2, "device": "cpu"}, "cpu", 0, 8),
        ({"CPU": 8.0}, {"device": "cuda"}, "cuda", 1, 8),
    ],
)
def test_settings_say_what_a_worker_gets(
    tiny_model_dir: Path, resources: dict[str, float], settings: dict[str, Any], device: str, gpus: int, threads: int
) -> None:
    made = ray_pool(TrainerSettings(base_models=(f"tiny={tiny_model_dir}",), **settings))
    cluster = RayCluster()
    cluster.resources = resources
    spec = RayPool(cluster, made._base_models, made._settings)._spec("tiny")
    assert (spec.settings.device, spec.num_gpus, spec.num_threads) == (device, gpus, threads)
    assert type(spec.settings) is WorkerSettings, "no secrets of the service reach a worker"


@pytest.mark.parametrize(
    ("settings", "ray_cpus", "threads"),
    [
        ({}, 3, 3),
        ({"max_workers": 2}, 3, 1),
        ({"max_workers": 5}, 5, 1),
        ({"max_workers": 2, "cpus_per_worker": 4}, 8, 4),
    ],
)
def test_an_embedded_ray_has_the_processors_of_the_containers_quota(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], ray_cpus: int, threads: int
) -> None:
    """And a place for each worker, however small the quota."""
    monkeypatch.setattr(ray_pool_module, "cpu_quota", lambda: 3.7)
    monkeypatch.setattr(ray_pool_module, "usable_cpus", lambda: 3)
    pool = ray_pool(TrainerSettings(base_models=(f"tiny={tiny_model_dir}",), **settings))
    assert pool._cluster._num_cpus == ray_cpus
    pool._cluster.resources = {"CPU": float(ray_cpus)}
    assert pool._spec("tiny").num_threads == threads


LOAD_IN_A_GROUP = """
import os, sys
model_dir, *files = sys.argv[1:]
for file in files:
    open(file, "w").write(str(os.getpid()))
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.cluster.worker_init import WorkerSpec, load_trainer, load_trainer_in_background
import torch
load_trainer(WorkerSpec("tiny", model_dir, WorkerSettings(device="cpu")))
print(torch.get_num_threads(), torch.get_num_interop_threads(), flush=True)
"""


def test_a_worker_in_a_real_container_with_a_quota_of_one_processor_has_one_thread(tiny_model_dir: Path) -> None:
    """OMP_NUM_THREADS is what Ray sets for an actor of two processors."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    with control_group(quota="100000", memory_bytes=4 << 30) as joined:
        command = [sys.executable, "-c", LOAD_IN_A_GROUP, str(tiny_model_dir), *map(str, joined)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout.split(), done.returncode) == (["1", "1"], 0), done.stderr


@pytest.mark.parametrize(("in_the_container", "chosen", "threads"), [(1, 0, 1), (16, 0, 2), (1, 3, 3)])
def test_a_worker_elsewhere_has_the_threads_that_its_own_container_allows(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, in_the_container: int, chosen: int, threads: int
) -> None:
    monkeypatch.setattr(worker_init, "usable_cpus", lambda: in_the_container)
    pool = ray_pool(
        TrainerSettings(
            base_models=(f"tiny={tiny_model_dir}",), ray_address="head:6379", cpus_per_worker=chosen, device="cpu"
        )
    )
    before = torch.get_num_threads()
    try:
        worker_init.load_trainer(pool._spec("tiny"))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("num_gpus", "named"),
    [(None, "SOFTPROMPT_TRAINER_DEVICE"), (0.5, "SOFTPROMPT_TRAINER_MODELS_FILE, num_gpus of tiny")],
)
def test_a_worker_without_its_gpu_names_what_asked_for_it(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_gpus: float | None, named: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    models, settings = models_file(tmp_path / "models.json", num_gpus=num_gpus), WorkerSettings(device="cuda")
    spec = RayPool(RayCluster("head:1"), {"tiny": str(tiny_model_dir)}, settings, models)._spec("tiny")
    with pytest.raises(InvalidInput) as caught:
        worker_init.load_trainer(spec)
    assert str(caught.value) == f"{named}: a GPU is asked for and torch sees no GPU"


def test_memory_in_use_is_measured_and_within_what_there_is() -> None:
    before = measure_memory()
    assert 0 < before.used_bytes <= before.limit_bytes
    kept = torch.ones(32 << 20)  # 128 MiB
    after = measure_memory()
    assert after.used_bytes - before.used_bytes > 100 << 20
    del kept


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({}, None),
        ({"TMPDIR": "/scratch/me"}, None),
        ({"TMPDIR": "/tmp/" + 40 * "x"}, "/tmp/ray"),
        ({"RAY_TMPDIR": "/é" * 20}, "/tmp/ray"),
    ],
)
def test_rays_sockets_lie_where_their_paths_are_short_enough(environment: dict[str, str], folder: str | None) -> None:
    assert short_temporary_folder(environment) == folder
