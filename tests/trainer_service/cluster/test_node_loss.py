"""An external cluster in which the workers run, one node is drained and another dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import recovery
from tests.trainer_service.cluster.processes import (
    Caller,
    State,
    TrainerProcess,
    channel_to,
    descendants_of,
    until_gone,
)

pytestmark = pytest.mark.ray

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def cluster() -> Iterator[dict[str, Any]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.trainer_service.cluster.several_nodes"]
    with subprocess.Popen(command, env=clean | TOKEN, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        assert process.stdin is not None
        processes = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        process.wait()
    _, alive = psutil.wait_procs(processes, timeout=20)
    for left in alive:  # Ray's agents outlive the nodes that they belong to
        kill(left)


async def test_a_drained_node_a_lost_node_and_a_killed_trainer(
    cluster: dict[str, Any], tmp_path: Path, tiny_model_dir: Path
) -> None:
    raylets = dict(cluster["raylets"])
    trainer = TrainerProcess(tmp_path, tiny_model_dir, environment=TOKEN, RAY_ADDRESS=cluster["address"])
    try:
        await trainer.start()
        assert not trainer.descendants("gcs_server"), "it started no Ray itself"
        async with channel_to(trainer) as channel:
            caller = Caller(channel)
            name = await caller.create(num_steps=900)
            await caller.reach(name, 30)
            [(drained, node)] = [(id, pid) for id, pid in raylets.items() if workers_of(pid)]
            workers = workers_of(node)
            (tmp_path / "notice").touch()
            with drain_agent(cluster["address"], drained, tmp_path / "notice") as agent:
                await caller.reach(name, 31, attempt=2)
                assert await asyncio.to_thread(agent.wait) == 0, "the node is empty and has left the cluster"
            await until_gone(workers)
            del raylets[drained]

            [(lost, node)] = [(id, pid) for id, pid in raylets.items() if workers_of(pid)]
            workers = workers_of(node)
            killed_at = time.time()
            for process in [psutil.Process(node), *psutil.Process(node).children(recursive=True)]:
                kill(process)
            recovery.note(
                "node of a worker lost: training again on another one",
                await caller.reach(name, 32, attempt=3) - killed_at,
            )
            await until_gone(workers)
            del raylets[lost]
            [survivor] = raylets.values()
            workers = workers_of(survivor)
            assert workers
            job = await caller.ended(name)
            assert (job.state, job.result.version) == (State.STATE_SUCCEEDED, "prompts/tone/versions/1")
            left, lost_note = [text for text in await caller.notes(name) if "its worker" in text]
            assert "its checkpoint is kept" in left, "the drained node's job moved with its last step"
            assert lost_note.startswith("lost its worker")
            name = await caller.create(num_steps=600)
            await caller.reach(name, 5)
        trainer.kill()
        await until_gone(workers)
        await trainer.start()
        async with channel_to(trainer) as channel:
            caller = Caller(channel)
            await caller.reach(name, 6, attempt=2)
            workers = workers_of(survivor)
            assert workers
            assert (await caller.ended(name)).result.version == "prompts/tone/versions/2"
        assert trainer.terminate() == 0
        await until_gone(workers)
        assert psutil.pid_exists(survivor), "the cluster itself is left alone"
    finally:
        trainer.kill()


def drain_agent(address: str, node_id: str, notice: Path) -> subprocess.Popen[bytes]:
    """The agent on a node, which waits for a file."""
    command = ["-m", "trainer_service", "drain-node", "--address", address, "--node-id", node_id, "--seconds", "600"]
    return subprocess.Popen([sys.executable, *command, "--file", str(notice)], env=os.environ | TOKEN)


def workers_of(raylet: int) -> list[psutil.Process]:
    return descendants_of(raylet, "WorkerActor")


def kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it ended with another one
        process.kill()
