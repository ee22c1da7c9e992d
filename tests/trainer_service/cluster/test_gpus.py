"""Workers on a part of a GPU and on several: what Ray gives them, what they may use, and what Prometheus shows of them.

The trainer, Ray, the workers, their training and Prometheus are real. The machine has no GPU: Ray and the workers find
two in a driver's library that is compiled from `nvml.c`, and `gpu_worker` lists what replaces CUDA.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.prometheus import running_prometheus
from tests.k8s.test_dashboards import dashboard_queries, prometheus_config
from tests.tiny_models import save_tiny_llama
from tests.trainer_service.cluster.processes import Caller, State, TrainerProcess, channel_to
from tests.waiting import until, wait_until
from trainer_service.cluster import nvml

UUIDS = ("00000000-0000-0000-0000-000000000000", "11111111-1111-1111-1111-111111111111")
LOADS = (0.37, 0.82)
HALF = {"num_gpus": 0.5, "num_cpus": 1, "accelerator_type": "H100"}
WORKERS: dict[str, dict[str, Any]] = {
    "half-a": {**HALF, "least": 1},
    "half-b": {**HALF, "least": 1},
    "both": {"num_gpus": 2, "num_cpus": 1},
    "three": {"num_gpus": 3, "num_cpus": 1},
    "older": {**HALF, "accelerator_type": "A100"},
}

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="LOUD: no C compiler for the driver's library")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library."""
    made = tmp_path_factory.mktemp("driver") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(made), str(source)], check=True)
    return made


def test_the_load_of_the_busiest_gpu(driver: Path) -> None:
    def load(*uuids: str) -> float | None:
        return nvml.busiest(uuids, str(driver))

    assert [load(uuid) for uuid in UUIDS] == list(LOADS)
    assert load(*UUIDS) == max(LOADS)
    assert load(UUIDS[0], "22222222-2222-2222-2222-222222222222") == LOADS[0]
    assert load() is load("unknown") is None


def test_without_a_driver_no_load_is_known() -> None:
    assert nvml.busiest(UUIDS, "libnvidia-ml-of-no-driver.so.1") is None


class Machine:
    """The models file of a trainer, and what Ray gave to its workers."""

    def __init__(self, folder: Path) -> None:
        self.models_file, self.facts = folder / "models.json", folder / "facts"
        self.facts.mkdir()
        self._sources = {
            name: save_tiny_llama(folder / name, seed, hidden_size=32) for seed, name in enumerate(WORKERS)
        }

    def write_models(self, **changes: dict[str, Any]) -> None:
        entries = [
            {"id": name, "source": str(self._sources[name]), "workers": {**workers, **changes.get(name, {})}}
            for name, workers in WORKERS.items()
        ]
        new = self.models_file.with_suffix(".new")
        new.write_text(json.dumps({"models": entries}))
        new.replace(self.models_file)

    def given(self) -> dict[str, dict[str, Any]]:
        """By base model."""
        found = [json.loads(file.read_text()) for file in self.facts.glob("*.json")]
        return {facts["base_model"]: facts for facts in found}


@pytest.mark.ray
async def test_ray_gives_each_worker_its_part_of_a_gpu_or_several(driver: Path, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write_models()
    environment = {"LD_LIBRARY_PATH": str(driver.parent), "FACTS_OF_GPU_WORKERS": str(machine.facts)}
    trainer = TrainerProcess(
        tmp_path,
        tmp_path / "half-a",
        environment={**environment, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        module="tests.trainer_service.cluster.trainer_with_gpus",
        BASE_MODELS="",
        MODELS_FILE=machine.models_file,
        DEVICE="cuda",
        MAX_WORKERS=5,
        WORKER_IDLE_SECONDS=0.5,
        MAX_PROOF_MODEL_BYTES=0,
    )
    await trainer.start()
    try:
        async with channel_to(trainer) as channel:
            caller = Caller(channel)
            refused = {
                "three": "a worker of base model 'three' needs 3 GPU(s), and this machine has 2",
                "older": "a worker of base model 'older' needs a GPU of type A100, and this machine has none",
            }
            for model, why in refused.items():
                name = await caller.create(model, base_model=model)
                await caller.noted(name, why)
                await caller.cancel(name)
            both = await caller.create("both", num_steps=2, base_model="both")  # waits: two workers share a GPU
            await until(lambda: {"half-a", "half-b"} <= machine.given().keys())
            given = machine.given()
            [gpu] = given["half-a"]["gpus"]
            for half in ("half-a", "half-b"):
                assert given[half]["gpus"] == [gpu], "CUDA_VISIBLE_DEVICES"
                assert (given[half]["fraction"], given[half]["limit_bytes"]) == (0.5, 40 << 30)
                assert given[half]["devices"] == ["spare:0"]
            assert "both" not in given
            port = json.loads((tmp_path / "trainer.json").read_bytes())["metrics_port"]
            await asyncio.to_thread(prometheus_shows, tmp_path, port, LOADS[int(gpu)])
            jobs = [await caller.create(half, num_steps=2, base_model=half) for half in ("half-a", "half-b")]
            assert {(await caller.ended(job)).state for job in jobs} == {State.STATE_SUCCEEDED}
            machine.write_models(**{half: {"least": 0} for half in ("half-a", "half-b")})
            assert (await caller.ended(both)).state == State.STATE_SUCCEEDED
            given = machine.given()
            assert (sorted(given["both"]["gpus"]), given["both"]["fraction"]) == (["0", "1"], 1.0)
            assert given["both"]["devices"] == ["spare:0", "spare:1"]
    finally:
        trainer.kill()


def prometheus_shows(folder: Path, port: int, load: float) -> None:
    """The dashboards' queries about workers' GPUs have the numbers of both workers that share one."""
    expected = {"device_bytes": 3 << 30, "device_busy_ratio": load}
    (folder / "prometheus").mkdir()
    with running_prometheus(
        folder / "prometheus", prometheus_config(folder / "prometheus", {"trainer": port})
    ) as server:
        for series, value in expected.items():
            [query] = [one for one in dashboard_queries() if f"worker_{series}" in one.expression]
            wanted = {"half-a": float(value), "half-b": float(value)}

            def shows(expression: str = query.expression, wanted: dict[str, float] = wanted) -> bool:
                found = server.query(expression)
                return {one["metric"]["base_model"]: float(one["value"][1]) for one in found} == wanted

            wait_until(shows, pause_seconds=0.5)
