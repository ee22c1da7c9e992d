"""The real process with real Ray: start by command, train a job, SIGTERM, a clean exit, and all data still there after
a restart.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prompttuning.v1 import prompts_pb2, prompts_pb2_grpc, tuning_pb2_grpc
from prompttuning.v1 import tuning_pb2 as pb

from tests.trainer_service.requests import first_step, tuning_spec
from tests.waiting import until

PREFIX = "SOFTPROMPT_TRAINER_"


@asynccontextmanager
async def process(environment: dict[str, str]) -> AsyncIterator[tuple[subprocess.Popen[bytes], grpc.aio.Channel]]:
    """A running, ready process and a channel to it; killed at the end if it still runs."""
    ready = Path(environment[f"{PREFIX}READY_FILE"])
    log = ready.with_name("log.txt")
    with log.open("ab") as stderr:
        command = [sys.executable, "-m", "trainer_service"]
        running = subprocess.Popen(command, env={**os.environ, **environment}, stderr=stderr)  # noqa: ASYNC220
    try:

        def is_ready() -> bool:
            assert running.poll() is None, log.read_text()
            return ready.exists()

        await until(is_ready)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{json.loads(ready.read_bytes())['port']}") as channel:
            yield running, channel
    finally:
        if running.poll() is None:
            running.kill()
        running.wait()


async def read_to_the_end(watch: Any) -> None:
    while await watch.read() is not grpc.aio.EOF:
        continue


@pytest.mark.ray
async def test_train_drain_restart(tmp_path: Path, tiny_model_dir: Path) -> None:
    environment = {
        f"{PREFIX}BASE_MODELS": f"tiny={tiny_model_dir}",
        f"{PREFIX}DATA_DIR": str(tmp_path / "data"),
        f"{PREFIX}READY_FILE": str(tmp_path / "ready.json"),
        f"{PREFIX}LOG_FORMAT": "json",
        f"{PREFIX}DTYPE": "float32",
    }
    async with process(environment) as (running, channel):
        tuning = tuning_pb2_grpc.TuningServiceStub(channel)
        spec = tuning_spec(hyperparameters=pb.Hyperparameters(num_steps=3, num_virtual_tokens=4))
        short = (await tuning.CreateTuningJob(pb.CreateTuningJobRequest(spec=spec))).job
        events = [response.event async for response in tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=short.name))]
        assert events[-1].state_changed.state == pb.TuningJob.STATE_SUCCEEDED, events[-1]
        spec.hyperparameters.num_steps = 1_000_000
        long = (await tuning.CreateTuningJob(pb.CreateTuningJobRequest(spec=spec))).job
        before = await first_step(tuning, long.name)
        watch = tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=long.name, after=before.number))
        running.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError):
            await read_to_the_end(watch)
        await until(lambda: running.poll() is not None)
        assert running.returncode == 0
        assert not Path(environment[f"{PREFIX}READY_FILE"]).exists()

    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines() if line.startswith("{")]
    assert {"serving", "job succeeded", "drained"} <= {line["message"] for line in lines}
    assert any(line.get("job") == short.name.removeprefix("tuningJobs/") for line in lines)

    async with process(environment) as (running, channel):
        tuning = tuning_pb2_grpc.TuningServiceStub(channel)
        later = await first_step(tuning, long.name, attempt=2)
        assert later.progress.step >= before.progress.step
        prompts = prompts_pb2_grpc.PromptServiceStub(channel)
        version = (await prompts.GetPromptVersion(prompts_pb2.GetPromptVersionRequest(name="support-tone"))).version
        assert version.job == short.name
        running.send_signal(signal.SIGTERM)
        await until(lambda: running.poll() is not None)
        assert running.returncode == 0


def test_bad_settings_end_the_process_with_their_names() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment = clean | {f"{PREFIX}MAX_WORKERS": "none", f"{PREFIX}TYPO": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "trainer_service"], env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 78
    for name in ("BASE_MODELS", "MAX_WORKERS", "TYPO"):
        assert f"{PREFIX}{name}" in done.stderr.decode()


def test_help_names_every_setting() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer_service", "--help"], capture_output=True, timeout=60, check=True
    )
    assert f"{PREFIX}BASE_MODELS" in done.stdout.decode()
