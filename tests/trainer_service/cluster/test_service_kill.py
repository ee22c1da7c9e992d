"""A trainer process with its embedded Ray, while a job runs: SIGKILL, SIGKILL of Ray's head, and SIGTERM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests import recovery
from tests.trainer_service.cluster.processes import Caller, State, TrainerProcess, channel_to, until_gone
from tests.waiting import until

pytestmark = pytest.mark.ray


@pytest.fixture
def trainer(tmp_path: Path, tiny_model_dir: Path) -> Iterator[TrainerProcess]:
    # Ray would join the cluster that this variable names. The service must ignore it and start its own cluster.
    elsewhere = {"RAY_ADDRESS": "127.0.0.1:1"}
    process = TrainerProcess(tmp_path, tiny_model_dir, environment=elsewhere, LOG_FORMAT="json")
    yield process
    process.kill()


async def test_a_killed_trainer_a_killed_ray_head_and_a_drain_leave_nothing_behind_and_lose_nothing(
    trainer: TrainerProcess,
) -> None:
    await trainer.start(forked=False)
    async with channel_to(trainer) as channel:
        caller = Caller(channel)
        name = await caller.create(num_steps=900, request_id="once")
        await caller.reach(name, 30)
        last = (await caller.get(name)).last_event
    processes = trainer.descendants()
    assert len(processes) >= 5, "Ray's servers, its agents, and a worker"
    killed_at = time.time()
    trainer.kill()
    await until_gone(processes)
    recovery.note("trainer killed: its processes are gone", time.time() - killed_at)

    await trainer.start()
    async with channel_to(trainer) as channel:
        caller = Caller(channel)
        assert await caller.create(num_steps=900, request_id="once") == name
        recovery.note("trainer killed and started again at once", await caller.reach(name, 31, attempt=2) - killed_at)
    [head], [worker] = trainer.descendants("gcs_server"), trainer.descendants("ray::WorkerActor")
    processes = trainer.descendants()
    os.kill(worker.pid, signal.SIGSTOP)  # else it might be done before the trainer has noticed
    killed_at = time.time()
    os.kill(head.pid, signal.SIGKILL)
    await until(lambda: trainer.process.poll() is not None)
    recovery.note("Ray head killed: the trainer ends itself", time.time() - killed_at)
    await until_gone(processes)

    await trainer.start()
    async with channel_to(trainer) as channel:
        caller = Caller(channel)
        recovery.note(
            "Ray head killed, the trainer started again by its supervisor",
            await caller.reach(name, 32, attempt=3) - killed_at,
        )
        drained_at = (await caller.get(name)).last_event
        watching = asyncio.create_task(caller.events_after(name, drained_at))
        processes = trainer.descendants()
        assert await asyncio.to_thread(trainer.terminate) == 0
        with pytest.raises(grpc.aio.AioRpcError):
            await watching
    assert not trainer.is_ready(), "the file is gone"
    await until_gone(processes)

    await trainer.start()
    async with channel_to(trainer) as channel:
        caller = Caller(channel)
        job = await caller.ended(name)
        assert (job.state, job.attempt, job.result.version) == (State.STATE_SUCCEEDED, 4, "prompts/tone/versions/1")
        assert await caller.events_after(name, last) == list(range(last + 1, job.last_event + 1))
    lines = [json.loads(line) for line in trainer.log.splitlines() if line.startswith("{")]
    assert {"serving", "job succeeded", "drained"} <= {line["message"] for line in lines}
    assert any(line.get("job") == name.removeprefix("tuningJobs/") for line in lines)
    processes = trainer.descendants()
    assert trainer.terminate() == 0
    await until_gone(processes)
