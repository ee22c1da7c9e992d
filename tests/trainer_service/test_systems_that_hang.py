"""A trainer whose prompt store or database hangs: calls that need only the other system are answered, and all calls end
in time.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from prompttuning.v1 import prompts_pb2
from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import Unavailable
from tests.s3_server import BUCKET
from tests.shared.store.conftest import s3_endpoint, s3_environment
from tests.tcp_proxy import TcpProxy, tcp_proxy
from tests.trainer_service.conftest import NoWorkers, RunningTrainer, refused, running_trainer
from tests.trainer_service.local_pool import LocalPool
from tests.trainer_service.postgres import Postgres
from tests.trainer_service.requests import create_job, first_step, inline
from tests.trainer_service.scripted import ScriptedTrainer
from tests.trainer_service.test_server import scrape, starting_trainer
from tests.waiting import until
from trainer_service import server
from trainer_service.config import TrainerSettings
from trainer_service.parts import SERVICE_NAMES

__all__ = ["s3_endpoint", "s3_environment"]

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
TUNING, PROMPTS = SERVICE_NAMES
LIST = prompts_pb2.ListPromptsRequest()


@pytest.fixture
def store_proxy(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TcpProxy]:
    """A proxy in front of an S3 server."""
    with tcp_proxy(int(s3_endpoint.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield proxy


@pytest.fixture
def database_proxy(postgres: Postgres) -> Iterator[TcpProxy]:
    with tcp_proxy(postgres.directory / ".s.PGSQL.5432") as proxy:
        yield proxy


@pytest.fixture
def far(
    settings: TrainerSettings, store_proxy: TcpProxy, database_proxy: TcpProxy, postgres: Postgres
) -> TrainerSettings:
    """Settings with both systems behind proxies."""
    name = f"far_{secrets.token_hex(4)}"
    postgres.create_database(name)
    changes: dict[str, Any] = {
        "store_url": f"s3://{BUCKET}/{name}",
        "database_url": f"postgresql://softprompt@127.0.0.1:{database_proxy.port}/{name}",
    }
    return settings.model_copy(update=changes)


@pytest.fixture
async def trainer(
    request: pytest.FixtureRequest, far: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningTrainer]:
    """Its parameter names the time limit that is short: that of the system that hangs."""
    monkeypatch.setattr(server, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr("trainer_service.pools.HEALTH_SECONDS", 0.3)
    async with running_trainer(far.model_copy(update={request.param: 1.0})) as running:
        yield running


async def becomes(trainer: RunningTrainer, **expected: int) -> None:
    async def is_so() -> bool:
        return [await trainer.health(service) for service in expected] == list(expected.values())

    await until(is_so)


@pytest.mark.parametrize("trainer", ["store_timeout_seconds"], indirect=True)
async def test_while_the_store_hangs_jobs_are_made_read_and_cancelled(
    trainer: RunningTrainer, store_proxy: TcpProxy
) -> None:
    store_proxy.hang()
    fine = dict.fromkeys(("job_database", "live", "ready", "", TUNING), SERVING)
    await becomes(trainer, prompt_store=NOT_SERVING, **{PROMPTS: NOT_SERVING}, **fine)
    listing = [
        asyncio.create_task(refused(trainer.prompts.ListPrompts(LIST))) for _ in range(40)
    ]  # more than there are threads
    job = await create_job(trainer)
    assert (
        await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=job.name))
    ).job.state == pb.TuningJob.STATE_QUEUED
    await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=job.name))
    events = [
        item.event.number
        async for item in trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=job.name))
        if item.event.number
    ]
    assert events == [1, 2]
    for error in await asyncio.gather(*listing):
        assert isinstance(error, Unavailable)
        assert "prompt store" in error.message
    text = await asyncio.to_thread(scrape, trainer)
    timed_out = next(
        line
        for line in text.splitlines()
        if line.startswith('softprompt_outside_calls_timed_out_total{system="prompt_store"}')
    )
    assert float(timed_out.split()[-1]) > 0
    assert 'softprompt_outside_calls_overdue{system="job_database"} 0.0' in text

    async def is_exported() -> bool:
        text = await asyncio.to_thread(scrape, trainer)
        return all(f"softprompt_trainer_{line}" in text for line in ("store_reachable 0.0", "database_reachable 1.0"))

    await until(is_exported)
    store_proxy.resume()
    await becomes(trainer, prompt_store=SERVING, **{PROMPTS: SERVING})

    async def is_listed() -> bool:
        with suppress(grpc.aio.AioRpcError):
            assert not (await trainer.prompts.ListPrompts(LIST)).prompts
            return True
        return False

    await until(is_listed)


async def test_while_the_store_hangs_training_and_checkpoints_go_on_and_what_is_trained_is_published_later(
    settings: TrainerSettings, store_proxy: TcpProxy
) -> None:
    store = {"store_url": f"s3://{BUCKET}/train_{secrets.token_hex(4)}", "store_timeout_seconds": 0.5}
    pool = LocalPool(lambda _: (ScriptedTrainer(64), {}), close_seconds=1.0)
    few = pb.Hyperparameters(num_steps=400, num_virtual_tokens=4)
    endless = inline([pb.Example(input=f"forever {n}", output="yes") for n in range(20)])
    async with running_trainer(settings.model_copy(update=store), lambda _: pool) as trainer:
        many = pb.Hyperparameters(num_steps=100_000, num_virtual_tokens=4)  # it stores another state in each step
        running = await create_job(trainer, hyperparameters=many, dataset=endless)
        await first_step(trainer.tuning, running.name)
        store_proxy.hang()
        begins = await create_job(trainer, hyperparameters=few, publish=pb.PublishPolicy(alias="-"))
        kinds = set[str]()
        after = (await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=running.name))).job.last_event
        async for item in trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=running.name, after=after)):
            kinds.add(item.event.WhichOneof("kind") or "")
            if {"progress", "checkpoint"} <= kinds:
                break
        await first_step(trainer.tuning, begins.name)

        async def look() -> pb.TuningJob:
            return (await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=begins.name))).job

        async def is_trained() -> bool:
            return (await look()).progress.step == few.num_steps

        await until(is_trained)
        assert (await look()).state == pb.TuningJob.STATE_RUNNING, "it waits for the store"
        store_proxy.resume()
        events = [
            item.event async for item in trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=begins.name))
        ]
        ended = events[-1].state_changed
        assert (ended.state, ended.attempt, ended.result.published) == (pb.TuningJob.STATE_SUCCEEDED, 1, True)
        await trainer.tuning.CancelTuningJob(pb.CancelTuningJobRequest(name=running.name))


@pytest.mark.parametrize("trainer", ["database_timeout_seconds"], indirect=True)
async def test_while_the_database_hangs_prompts_are_listed(trainer: RunningTrainer, database_proxy: TcpProxy) -> None:
    async def created() -> pb.TuningJob | None:
        with suppress(grpc.aio.AioRpcError):  # on a slow machine
            return await create_job(trainer, "once")
        return None

    job = await until(created)
    database_proxy.hang()
    fine = dict.fromkeys(("prompt_store", "live", "", PROMPTS), SERVING)
    await becomes(trainer, job_database=NOT_SERVING, ready=NOT_SERVING, **{TUNING: NOT_SERVING}, **fine)
    getting = [
        asyncio.create_task(refused(trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=job.name))))
        for _ in range(30)
    ]
    for _ in range(5):
        assert not (await trainer.prompts.ListPrompts(LIST)).prompts
    for error in await asyncio.gather(*getting):
        assert isinstance(error, Unavailable)
        assert "job database" in error.message
    database_proxy.resume()
    await becomes(trainer, job_database=SERVING, ready=SERVING)

    async def is_read() -> bool:
        with suppress(grpc.aio.AioRpcError):
            return bool((await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=job.name))).job.name)
        return False

    await until(is_read)


@pytest.mark.parametrize("which", ["store", "database", "both"])
async def test_a_drain_keeps_to_its_grace_time(
    far: TrainerSettings, which: str, store_proxy: TcpProxy, database_proxy: TcpProxy
) -> None:
    settings = far.model_copy(
        update={"grace_seconds": 1.0, "store_timeout_seconds": 3600.0, "database_timeout_seconds": 3600.0}
    )
    async with running_trainer(settings) as trainer:
        hanging = {"store": [store_proxy], "database": [database_proxy], "both": [store_proxy, database_proxy]}[which]
        for proxy in hanging:
            proxy.hang()
        calls = [asyncio.create_task(trainer.prompts.ListPrompts(LIST).code()) for _ in range(3)]
        await asyncio.sleep(0)
        trainer.stop.set()
        await asyncio.shield(trainer.task)  # else it would wait for the hanging systems
        await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("which", ["store", "database"])
async def test_a_trainer_that_waits_at_its_start_lives_and_can_be_stopped(
    far: TrainerSettings, which: str, store_proxy: TcpProxy, database_proxy: TcpProxy
) -> None:
    (store_proxy if which == "store" else database_proxy).hang()
    settings = far.model_copy(update={"store_timeout_seconds": 30.0, "database_timeout_seconds": 1.0})
    async with starting_trainer(settings, NoWorkers()) as trainer:
        assert [await trainer.health(service) for service in ("live", "ready")] == [SERVING, NOT_SERVING]
        for call in (
            trainer.prompts.ListPrompts(LIST),
            trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name="tuningJobs/a")).read(),
        ):
            error = await refused(call)
            assert isinstance(error, Unavailable)
            assert "starting" in error.message
        assert not Path(settings.ready_file).exists()
