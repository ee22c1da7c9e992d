"""A large dataset is sent to a worker: the trainer keeps answering, and a node without the trainer's disk receives the
bytes once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prompttuning.v1 import tuning_pb2 as pb

from tests.trainer_service.builders import effective_spec
from tests.trainer_service.cluster.conftest import SharedCluster
from tests.trainer_service.conftest import running_trainer
from tests.trainer_service.requests import create_job
from tests.waiting import until
from trainer_service.cluster.node_datasets import cache_directory
from trainer_service.cluster.ray_pool import RayPool, RayWorker
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.config import TrainerSettings
from trainer_service.training.events import DatasetFile, Started, TaskData, TrainingTask

pytestmark = pytest.mark.ray

NUM_LINES, LINE_BYTES = 40_000, 2_700
MAX_STALL_SECONDS = 0.5
"""Of processor time, so that other processes of the machine don't count."""


def line(number: int, size: int = 0) -> bytes:
    """JSON lines may have white space between their parts: a large file whose text a tiny model reads quickly."""
    text = json.dumps({"input": f"number {number}", "output": "yes"}).encode()
    return text[:-1] + b" " * (size - len(text) - 1) + b"}\n"


@asynccontextmanager
async def watched_loop() -> AsyncIterator[list[float]]:
    """Seconds for which the loop's thread computes between two turns, longest last once the block is left."""
    gaps = [0.0]

    async def beat() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.01)
            now = time.thread_time()
            gaps.append(now - last)
            last = now

    task = asyncio.create_task(beat())
    try:
        yield gaps
    finally:
        task.cancel()
        gaps.sort()


async def test_the_event_loop_runs_on_while_a_dataset_of_100_mb_goes_to_a_worker(
    ray_cluster: SharedCluster, settings: TrainerSettings, tmp_path: Path, tiny_model_dir: Path
) -> None:
    (tmp_path / "data").mkdir()
    large = tmp_path / "data" / "large.jsonl"
    large.write_bytes(b"".join(line(number, LINE_BYTES) for number in range(NUM_LINES)))
    assert large.stat().st_size > 100 << 20
    limits = {"max_dataset_bytes": 256 << 20, "max_examples": NUM_LINES, "dataset_roots": (str(large.parent),)}
    pool = RayPool(
        ray_cluster, {"tiny": str(tiny_model_dir)}, WorkerSettings(dtype="float32", device="cpu", cpus_per_worker=1)
    )
    async with (
        running_trainer(settings.model_copy(update=limits), lambda settings: pool) as trainer,
        watched_loop() as gaps,
    ):
        hyperparameters = pb.Hyperparameters(num_steps=1, num_virtual_tokens=4)
        source = pb.DatasetSource(uri=large.as_uri())
        job = await create_job(trainer, dataset=source, validation_fraction=0.001, hyperparameters=hyperparameters)
        watch = trainer.tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=job.name))
        events = [response.event async for response in watch if not response.event.HasField("heartbeat")]
    assert events[-1].state_changed.state == pb.TuningJob.STATE_SUCCEEDED, events[-1]
    assert gaps[-1] < MAX_STALL_SECONDS


@pytest.fixture
def unseen(tmp_path: Path) -> Iterator[DatasetFile]:
    """A dataset of 3 MB by a path that means nothing in another process, as on a node without the trainer's disk."""
    data = (
        b"".join(line(number, 30_000) for number in range(100))
        + json.dumps({"input": uuid.uuid4().hex, "output": "x"}).encode()
    )
    path = tmp_path / "examples.jsonl"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    file = DatasetFile(hashlib.sha256(data).hexdigest(), f"/proc/self/fd/{descriptor}", len(data))
    yield file
    os.close(descriptor)
    (cache_directory() / f"sha256-{file.digest}.jsonl").unlink(missing_ok=True)


def training_task(file: DatasetFile, job_id: str) -> TrainingTask:
    spec = effective_spec(num_steps=1).training
    return TrainingTask(job_id, 1, spec, data=TaskData(file, None, validation_fraction=0.1, seed=1))


async def started(worker: RayWorker, job_id: str) -> Started:
    found: list[Started] = []

    async def look() -> bool:
        report = await worker.poll(0, 0.2)
        found.extend(event for event in report.events if isinstance(event, Started) and event.job_id == job_id)
        return bool(found)

    await until(look)
    return found[0]


async def test_a_node_without_the_trainers_disk_gets_the_bytes_once(
    ray_cluster: SharedCluster, tiny_model_dir: Path, unseen: DatasetFile
) -> None:
    pool = RayPool(
        ray_cluster, {"tiny": str(tiny_model_dir)}, WorkerSettings(dtype="float32", device="cpu", cpus_per_worker=1)
    )
    copy = cache_directory() / f"sha256-{unseen.digest}.jsonl"
    try:
        first, second = await pool.launch("tiny"), await pool.launch("tiny")
        await first.add(training_task(unseen, "one"))
        statistics = (await started(first, "one")).statistics
        assert (statistics.num_train, statistics.num_validation) == (91, 10)
        made = copy.stat().st_ino
        await second.add(training_task(unseen, "two"))
        assert (await started(second, "two")).statistics == statistics
        assert copy.stat().st_ino == made, "the node's other worker reads the same copy"
    finally:
        await pool.close()
