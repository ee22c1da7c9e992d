"""Time from submission to the first training step, with workers on an embedded Ray: cold, and with a warm worker."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.jobs.parts import spec
from benchmarks.jobs.store_load import running
from shared.model import base_model
from trainer_service.cluster.ray_cluster import RayCluster
from trainer_service.cluster.ray_pool import RayPool
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.dispatch.manager import JobManager
from trainer_service.jobs.model import Job, JobEventKind
from trainer_service.jobs.states import JobState

NUM_WARM = 5


async def measure(directory: Path, model: Path) -> dict[str, Any]:
    """Measured times in seconds."""
    info = base_model.inspect(model, id="bench")
    pool = RayPool(RayCluster(), {"bench": str(model)}, WorkerSettings())
    started = time.perf_counter()
    async with running(f"sqlite:///{directory / 'first.sqlite3'}", directory, pool, info) as (manager, _):
        ray_seconds = round(time.perf_counter() - started, 2)
        cold = await one(manager)
        warm = [await one(manager) for _ in range(NUM_WARM)]
    return {
        "ray_starts": ray_seconds,
        "cold": cold,
        "warm": sorted(warm, key=lambda marks: marks["first_step"])[NUM_WARM // 2],
    }


async def one(manager: JobManager) -> dict[str, float]:
    """Runs a small job and returns the times from its submission to its claim, first reported step and publication."""
    started = time.perf_counter()
    job = await manager.create(spec(0, num_steps=2, evaluation_interval_steps=2, batch_size=2))
    marks: dict[str, float] = {}
    async for event in manager.watch(job.id):
        seconds = round(time.perf_counter() - started, 3)
        if event.kind is JobEventKind.PROGRESS:
            marks.setdefault("first_step", seconds)
        elif isinstance(event.payload, Job) and event.payload.state is JobState.RUNNING:
            marks["taken"] = seconds
        elif isinstance(event.payload, Job) and event.payload.state is JobState.SUCCEEDED:
            marks["published"] = seconds
    return marks
