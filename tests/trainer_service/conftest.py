"""A whole trainer on a free port, called through a real channel. Its pool launches no workers, so jobs stay queued."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prompttuning.v1 import prompts_pb2_grpc, tuning_pb2_grpc

from shared.errors import SoftPromptError
from shared.rpc.errors import error_from_rpc
from tests.trainer_service.job_service import Service
from tests.trainer_service.postgres import Postgres, find_binaries
from tests.waiting import until
from trainer_service.config import TrainerSettings
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.parts import PoolMaker
from trainer_service.server import serve

PATIENT: dict[str, Any] = {"store_timeout_seconds": 600.0, "database_timeout_seconds": 600.0}
"""Settings of a trainer on a busy machine: only a system that hangs exceeds these limits."""


class NoWorkers:
    """A pool whose first worker never becomes ready."""

    async def start(self) -> None: ...

    async def launch(self, base_model: str) -> Any:
        await asyncio.Event().wait()

    async def close(self) -> None: ...


@dataclass
class RunningTrainer:
    settings: TrainerSettings
    port: int
    channel: Any  # `grpc.aio.Channel`, whose stubs know no calls of plain bytes
    stop: asyncio.Event
    task: asyncio.Task[None]

    @property
    def tuning(self) -> Any:
        return tuning_pb2_grpc.TuningServiceStub(self.channel)

    @property
    def prompts(self) -> Any:
        return prompts_pb2_grpc.PromptServiceStub(self.channel)

    async def health(self, service: str = "") -> int:
        response = await health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(service=service))
        return int(response.status)


@asynccontextmanager
async def running_trainer(
    settings: TrainerSettings, make_pool: PoolMaker = lambda settings: NoWorkers()
) -> AsyncIterator[RunningTrainer]:
    """Started and SERVING; drained at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(serve(settings, stop, make_pool))
    ready = Path(settings.ready_file)

    def is_ready() -> bool:
        if task.done():
            task.result()
        return ready.exists()

    await until(is_ready)
    port = json.loads(ready.read_bytes())["port"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        trainer = RunningTrainer(settings, port, channel, stop, task)
        try:
            yield trainer
        finally:
            stop.set()
            await task


async def refused(call: Awaitable[Any]) -> SoftPromptError:
    """The domain error of a refused call, as a client reads it; its cause is the status on the wire."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    found = error_from_rpc(error.value)
    found.__cause__ = error.value
    return found


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> TrainerSettings:
    return TrainerSettings(
        base_models=(f"tiny={tiny_model_dir}",),
        data_dir=tmp_path / "data",
        ready_file=str(tmp_path / "ready.json"),
        max_dataset_bytes=4 << 20,
        max_line_bytes=1 << 20,
        max_examples=5_000,
        max_queued_jobs=20,
        max_virtual_tokens=100,
        grace_seconds=5,
        max_proof_model_bytes=0,  # a process for each import would take seconds
        **PATIENT,
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def stored_settings(request: pytest.FixtureRequest, settings: TrainerSettings) -> TrainerSettings:
    """`settings`, with each kind of job database."""
    if request.param == "sqlite":
        return settings
    url = request.getfixturevalue("postgres").create_database(f"test_{uuid.uuid4().hex}")
    return settings.model_copy(update={"database_url": url})


@pytest.fixture
async def trainer(settings: TrainerSettings) -> AsyncIterator[RunningTrainer]:
    async with running_trainer(settings) as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(
            "PostgreSQL IS NOT INSTALLED: the job store is tested on SQLite only (Debian: apt-get install postgresql)"
        )
    with TemporaryDirectory(prefix="pg-") as directory:  # not pytest's own: a socket's path may have 107 bytes
        server = Postgres(binaries, Path(directory))
        server.start()
        yield server
        server.stop()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """Not started; drained at the end if it was."""
    made = Service(tmp_path)
    yield made
    await made.drain()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    """An empty job store, on each database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    else:
        url = request.getfixturevalue("postgres").create_database(f"test_{uuid.uuid4().hex}")
    opened = JobStore.open(url, timeout_seconds=600)
    yield opened
    opened.close()
