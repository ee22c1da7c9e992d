"""Starting, staying healthy and stopping, when something is unavailable or slow."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prompttuning.v1 import prompts_pb2
from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import Unavailable
from shared.store import PromptStore, open_store
from tests.log_lines import log_lines
from tests.trainer_service.conftest import NoWorkers, RunningTrainer, refused, running_trainer
from tests.trainer_service.requests import create_job
from tests.waiting import until
from trainer_service import parts, server
from trainer_service.config import TrainerSettings
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.parts import SERVICE_NAMES
from trainer_service.server import serve

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class SlowToStart(NoWorkers):
    """A cluster that starts slowly."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.closed = False

    async def start(self) -> None:
        await self.started.wait()

    async def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def starting_trainer(settings: TrainerSettings, pool: NoWorkers) -> AsyncIterator[RunningTrainer]:
    """One that listens, and may not serve yet. Drained at the end."""
    stop = asyncio.Event()
    with log_lines("trainer_service.server", "listening") as lines:
        task = asyncio.create_task(serve(settings, stop, lambda settings: pool))
        await until(lambda: lines)
    port = int(lines[0]["port"])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            yield RunningTrainer(settings, port, channel, stop, task)
        finally:
            stop.set()
            await task


async def test_it_answers_before_it_can_serve_and_says_so(settings: TrainerSettings) -> None:
    pool = SlowToStart()
    async with starting_trainer(settings, pool) as trainer:
        assert await trainer.health("live") == SERVING
        assert await trainer.health("ready") == NOT_SERVING
        assert not Path(settings.ready_file).exists()
        pool.started.set()

        async def is_serving() -> bool:
            return await trainer.health() == SERVING

        await until(is_serving)
        await until(Path(settings.ready_file).exists)
    assert pool.closed


async def test_it_can_be_stopped_while_it_starts(settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_FINISH_BUILDING_SECONDS", 600.0)
    pool, stop = SlowToStart(), asyncio.Event()
    task = asyncio.create_task(serve(settings, stop, lambda settings: pool))
    await until(lambda: (settings.data_dir / "jobs.sqlite3").exists())
    stop.set()
    await task
    assert pool.closed


async def test_it_waits_for_a_store_that_is_away(settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open, refusals = open_store, iter(range(2))

    def away_twice(url: str, timeout_seconds: float) -> Any:
        if next(refusals, None) is not None:
            raise Unavailable("the prompt store is unavailable")
        return really_open(url, timeout_seconds)

    monkeypatch.setattr(parts, "open_store", away_twice)
    monkeypatch.setattr("shared.process.call_pool._OPEN_PAUSE_SECONDS", 0.01)
    async with running_trainer(settings) as trainer:
        assert await trainer.health() == SERVING
    assert next(refusals, None) is None


async def test_without_its_database_it_does_not_serve_and_without_the_store_it_does(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(part: Any) -> Any:
        raise Unavailable("it is unavailable")

    monkeypatch.setattr(server, "CHECK_SECONDS", 0.02)
    async with running_trainer(settings) as trainer:

        async def is_now(status: int) -> bool:
            return await trainer.health("ready") == status

        async def store_is_said_to_be(reachable: str) -> bool:
            return f"softprompt_trainer_store_reachable {reachable}" in await asyncio.to_thread(scrape, trainer)

        with monkeypatch.context() as patch:
            patch.setattr(PromptStore, "refresh", unavailable)
            await until(lambda: store_is_said_to_be("0.0"))
            assert await is_now(SERVING)
            assert (await create_job(trainer)).state == pb.TuningJob.STATE_QUEUED
            assert isinstance(await refused(trainer.prompts.ListPrompts(prompts_pb2.ListPromptsRequest())), Unavailable)
        await until(lambda: store_is_said_to_be("1.0"))
        with monkeypatch.context() as patch:
            patch.setattr(JobStore, "counts", unavailable)
            await until(lambda: is_now(NOT_SERVING))
        await until(lambda: is_now(SERVING))


async def test_a_taken_port_is_said_plainly(settings: TrainerSettings, trainer: RunningTrainer, tmp_path: Path) -> None:
    other = settings.model_copy(update={"port": trainer.port, "data_dir": tmp_path / "other", "ready_file": ""})
    with pytest.raises(OSError, match="another program uses this port"):
        await serve(other, asyncio.Event(), lambda settings: NoWorkers())


async def test_reflection_and_metrics(trainer: RunningTrainer) -> None:
    await create_job(trainer)
    stub = reflection_pb2_grpc.ServerReflectionStub(trainer.channel)
    answers = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    async for answer in answers:
        names = {service.name for service in answer.list_services_response.service}
    assert set(SERVICE_NAMES) <= names
    text = await asyncio.to_thread(scrape, trainer)
    assert "softprompt_trainer_jobs_created_total 1.0" in text
    assert 'grpc_server_handled_total{grpc_code="OK",grpc_method="CreateTuningJob"' in text


def scrape(trainer: RunningTrainer) -> str:
    port = json.loads(Path(trainer.settings.ready_file).read_bytes())["metrics_port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        return str(response.read().decode())
