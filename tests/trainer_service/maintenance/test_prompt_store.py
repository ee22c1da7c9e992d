"""The trainer maintains the prompt store in the background, counts it in metrics, and survives its failures."""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prompttuning.v1 import prompts_pb2 as pb

from shared.store import PromptStore, open_store
from shared.store import store as store_module
from shared.store.maintenance import MaintenancePolicy, MaintenanceReport
from tests.trainer_service.conftest import RunningTrainer, running_trainer
from tests.trainer_service.test_prompt_service import MATRIX, publish
from tests.waiting import until
from trainer_service.config import TrainerSettings
from trainer_service.maintenance.rounds import Rounds, store_rounds


async def versions(trainer: RunningTrainer) -> list[int]:
    listed = await trainer.prompts.ListPromptVersions(pb.ListPromptVersionsRequest(parent="colours"))
    return [int(version.name.rpartition("/")[2]) for version in listed.versions]


async def metric(port: int, name: str, **labels: str) -> float:
    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            return str(response.read().decode())

    samples = [
        sample
        for family in text_string_to_metric_families(await asyncio.to_thread(scrape))
        for sample in family.samples
    ]
    return sum(
        sample.value
        for sample in samples
        if sample.name == f"softprompt_trainer_{name}" and labels.items() <= sample.labels.items()
    )


async def test_old_versions_go_by_the_setting_and_aliased_ones_stay(settings: TrainerSettings) -> None:
    port_file = Path(settings.ready_file)
    tidy = settings.model_copy(update={"keep_versions": 2, "store_maintenance_seconds": 0.05})
    async with running_trainer(tidy) as trainer:
        metrics_port = json.loads(port_file.read_bytes())["metrics_port"]
        await publish(trainer, alias="stable")
        for number in range(1, 5):
            await publish(trainer, MATRIX + number)

        async def tidied() -> bool:
            return await versions(trainer) == [5, 4, 1]

        await until(tidied)

        async def counted() -> bool:
            return await metric(metrics_port, "store_tidied_total", what="versions") == 2

        await until(counted)
        assert await metric(metrics_port, "store_maintenance_rounds_total", outcome="succeeded") > 0


async def test_by_default_nothing_goes(trainer: RunningTrainer) -> None:
    assert trainer.settings.keep_versions == 0
    assert MaintenancePolicy.of(trainer.settings) == MaintenancePolicy()


async def run_until(upkeep: Rounds[MaintenanceReport], condition: Any) -> None:
    task = asyncio.create_task(upkeep.run())
    try:
        await until(condition)
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_unavailable_store_and_a_bug_are_logged_and_the_next_round_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    store = open_store(str(tmp_path / "store"))
    reports: list[MaintenanceReport] = []

    def upkeep() -> Rounds[MaintenanceReport]:
        return store_rounds(store, MaintenancePolicy(), 0.01, lambda report, seconds: reports.append(report))

    (tmp_path / "store").rename(tmp_path / "away")
    await run_until(upkeep(), lambda: len(reports) >= 2)
    assert "directory can't be used" in reports[0].failures["log"]
    (tmp_path / "away").rename(tmp_path / "store")

    def broken(self: PromptStore, *args: Any, **kwargs: Any) -> int:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(store_module.PromptStore, "truncate_log", broken)
        seen = len(reports)
        await run_until(upkeep(), lambda: len(reports) >= seen + 2)
    assert reports[-1].failures == {"round": "unexpected error"}
    assert "unexpected error" in caplog.text
    seen = len(reports)
    await run_until(upkeep(), lambda: len(reports) > seen)
    assert reports[-1].failures == {}


async def test_rounds_are_jittered_and_the_first_comes_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr("asyncio.sleep", noted)
    upkeep = store_rounds(open_store(str(tmp_path / "store")), MaintenancePolicy(), 3600.0, lambda *report: None)
    task = asyncio.create_task(upkeep.run())
    while len(pauses) < 5:
        await sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert pauses[0] <= 90
    assert all(1800 <= pause <= 5400 for pause in pauses[1:])
    assert len(set(pauses)) == len(pauses)


async def test_zero_means_not_here(tmp_path: Path) -> None:
    reports: list[MaintenanceReport] = []
    store = open_store(str(tmp_path / "store"))
    await store_rounds(store, MaintenancePolicy(), 0, lambda report, seconds: reports.append(report)).run()
    assert reports == []
