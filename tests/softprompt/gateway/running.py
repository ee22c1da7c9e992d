"""A gateway, a replica and a trainer that trains, all real, in a thread with its own event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.store import PromptStore
from softprompt.client.loop_thread import LoopThread
from softprompt.gateway.server import serve
from softprompt.gateway.settings import GatewaySettings
from tests.inference_service.replica import Replica, running_replica
from tests.trainer_service.conftest import PATIENT, RunningTrainer, running_trainer
from tests.trainer_service.test_training_end_to_end import local_pool
from tests.waiting import until
from trainer_service.config import TrainerSettings


@dataclass(frozen=True)
class RunningGateway:
    """Its ports, and a way to stop it."""

    port: int
    metrics_port: int
    stop: asyncio.Event
    done: asyncio.Task[None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def running_gateway(
    directory: Path, trainer_port: int, inference_port: int, **settings: Any
) -> AsyncIterator[RunningGateway]:
    """Ready inside the block; drained at its end."""
    ready = directory / "gateway.json"
    directory.mkdir(parents=True, exist_ok=True)
    defaults: dict[str, Any] = {
        "port": 0,
        "ready_file": str(ready),
        "grace_seconds": 5,
        "trainer": f"127.0.0.1:{trainer_port}",
        "inference": f"127.0.0.1:{inference_port}",
    }
    stop = asyncio.Event()
    done = asyncio.create_task(serve(GatewaySettings(**{**defaults, **settings}), stop))
    await until(lambda: ready.exists() or done.done())
    if done.done():
        done.result()
    ports = json.loads(ready.read_bytes())
    try:
        yield RunningGateway(ports["port"], ports["metrics_port"], stop, done)
    finally:
        stop.set()
        await asyncio.gather(done, return_exceptions=True)


@dataclass(frozen=True)
class World:
    """What a test of the gateway needs."""

    loop: LoopThread
    gateway: RunningGateway
    replica: Replica
    trainer: RunningTrainer
    model_dir: Path

    @property
    def url(self) -> str:
        return self.gateway.url

    @property
    def store(self) -> PromptStore:
        return self.replica.store


@asynccontextmanager
async def _world(loop: LoopThread, model_dir: Path, directory: Path, callers_file: str) -> AsyncIterator[World]:
    settings = TrainerSettings(
        base_models=(f"tiny-llama={model_dir}",),
        data_dir=directory / "data",
        store_url=str(directory / "store"),
        ready_file=str(directory / "trainer.json"),
        grace_seconds=5,
        dtype="float32",
        max_proof_model_bytes=0,
        callers_file=callers_file,
        **PATIENT,
    )
    async with (
        running_replica(model_dir, directory, base_model_id="tiny-llama", callers_file=callers_file) as replica,
        running_trainer(settings, local_pool) as trainer,
        running_gateway(directory, trainer.port, replica.port) as gateway,
    ):
        yield World(loop, gateway, replica, trainer, model_dir)


@contextmanager
def world(model_dir: Path, directory: Path, callers_file: str = "") -> Iterator[World]:
    """`callers_file`: for both services; empty: everyone may do everything."""
    loop = LoopThread("world")
    context = _world(loop, model_dir, directory, callers_file)
    made = loop.run(context.__aenter__())
    try:
        yield made
    finally:
        loop.run(context.__aexit__(None, None, None))
        loop.stop()
