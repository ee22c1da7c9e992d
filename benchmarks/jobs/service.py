"""Measures a service in its own process over gRPC: 2,000 jobs are queued while 50 callers watch."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
from prompttuning.v1 import tuning_pb2 as pb
from prompttuning.v1 import tuning_pb2_grpc

from benchmarks.jobs.parts import NoWorkers, spread
from shared.process.service import run_service
from tests.tiny_models import save_tiny_llama
from trainer_service.config import TrainerSettings
from trainer_service.server import serve

NUM_WATCHERS, NUM_JOBS, START_SECONDS = 50, 2000, 120


async def serve_without_workers(settings: TrainerSettings, stop: asyncio.Event) -> None:
    """Runs the service without training workers."""
    await serve(settings, stop, lambda _: NoWorkers())


async def measure(directory: Path) -> dict[str, Any]:
    """Submits the jobs in two equal rounds; the memory that the second round adds is the cost of the jobs."""
    ready = directory / "ready.json"
    settings = {
        "BASE_MODELS": f"tiny={save_tiny_llama(directory / 'tiny')}",
        "DATA_DIR": directory / "data",
        "READY_FILE": ready,
    }
    environment = os.environ | {f"SOFTPROMPT_TRAINER_{name}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "benchmarks.jobs.service"]
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,  # noqa: ASYNC220
    ):
        try:
            async with asyncio.timeout(START_SECONDS):
                while not ready.exists():
                    await asyncio.sleep(0.1)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{json.loads(ready.read_bytes())['port']}") as channel:
                return await rounds(tuning_pb2_grpc.TuningServiceStub(channel), psutil.Process(process.pid))
        finally:
            process.terminate()


async def rounds(stub: Any, process: psutil.Process) -> dict[str, Any]:
    watched = [await create(stub) for _ in range(NUM_WATCHERS)]
    cancelled_at: dict[str, float] = {}
    delays: list[float] = []

    async def watch(name: str) -> None:
        watching = stub.WatchTuningJob(pb.WatchTuningJobRequest(name=name))
        while (await watching.read()).event.state_changed.state != pb.TuningJob.STATE_CANCELLED:
            continue
        delays.append((time.perf_counter() - cancelled_at[name]) * 1000)
        watching.cancel()

    watches = [asyncio.create_task(watch(name)) for name in watched]
    memory, samples = [megabytes(process)], list[float]()
    started = time.perf_counter()
    for _ in range(2):
        for _ in range(NUM_JOBS // 2):
            begun = time.perf_counter()
            await create(stub)
            samples.append((time.perf_counter() - begun) * 1000)
        memory.append(megabytes(process))
    seconds = time.perf_counter() - started
    for name in watched:
        cancelled_at[name] = time.perf_counter()
        await stub.CancelTuningJob(pb.CancelTuningJobRequest(name=name))
    await asyncio.gather(*watches)
    return {
        "jobs": NUM_JOBS,
        "watchers": NUM_WATCHERS,
        "create_ms": spread(samples),
        "creates_a_second": round(NUM_JOBS / seconds, 1),
        "event_ms": {**spread(delays), "worst": round(max(delays), 2)},
        "memory_mb": {"before": memory[0], "after_1000": memory[1], "after_2000": memory[2]},
    }


async def create(stub: Any) -> str:
    examples = [pb.Example(input=f"question {number}", output="yes") for number in range(24)]
    spec = pb.TuningSpec(prompt="tone", dataset=pb.DatasetSource(inline=pb.InlineDataset(examples=examples)))
    return str((await stub.CreateTuningJob(pb.CreateTuningJobRequest(spec=spec))).job.name)


def megabytes(process: psutil.Process) -> float:
    resident: int = process.memory_info().rss
    return round(resident / (1 << 20), 1)


if __name__ == "__main__":
    sys.exit(run_service(TrainerSettings, serve_without_workers, __doc__ or ""))
