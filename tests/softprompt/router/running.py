"""A router in the test's event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from prompttuning.v1 import generation_pb2_grpc

from shared.store.replicas import ReplicaDirectory, ReplicaRecord
from softprompt.client.security import ClientSecurity
from softprompt.router.server import serve
from softprompt.router.settings import RouterSettings
from tests.waiting import until


@dataclass(frozen=True)
class Router:
    """Its port, a client's view of it, and a way to stop it."""

    port: int
    metrics_port: int
    stub: Any
    channel: grpc.aio.Channel
    stop: asyncio.Event
    done: asyncio.Task[None]


@asynccontextmanager
async def running_router(
    directory: Path, store_dir: Path, security: ClientSecurity | None = None, **settings: Any
) -> AsyncIterator[Router]:
    """Ready inside the block: it has found a replica. Drained at its end."""
    directory.mkdir(parents=True, exist_ok=True)
    ready, stop = directory / "router.json", asyncio.Event()
    defaults = {"port": 0, "poll_seconds": 0.02, "grace_seconds": 600, "ready_file": str(ready)}
    chosen = RouterSettings(store_url=str(store_dir), **{**defaults, **settings})
    done = asyncio.create_task(serve(chosen, stop, security or ClientSecurity()))
    try:
        await until(lambda: ready.exists() or done.done())
        if done.done():
            done.result()
        ports = json.loads(ready.read_bytes())
        options = [("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['port']}", options=options) as channel:
            stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
            yield Router(ports["port"], ports["metrics_port"], stub, channel, stop, done)
    finally:
        stop.set()
        await asyncio.gather(done, return_exceptions=True)


async def knows(router: Router, *base_models: str) -> None:
    """Wait until the router has found these base models, and no others."""
    from prompttuning.v1 import generation_pb2

    async def look() -> bool:
        info = await router.stub.GetModelInfo(generation_pb2.GetModelInfoRequest())
        return list(info.base_models) == sorted(base_models)

    await until(look)


def lie(directory: ReplicaDirectory, truth: ReplicaRecord, id: str, **wrong: Any) -> None:
    """Write a replica's record with false content."""
    directory.put(truth.model_copy(update={"id": id, **wrong}))
