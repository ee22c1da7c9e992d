"""The whole trainer as a process of its own, with its embedded Ray: killed with -9 while a job runs, and started again."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from prompttuning.v1 import tuning_pb2, tuning_pb2_grpc

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

State = tuning_pb2.TuningJob.State


class TrainerProcess:
    def __init__(self, directory: Path, model: Path) -> None:
        self._directory, self._model = directory, model
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> int:
        """The port, once it serves."""
        ready = self._directory / "ready.json"
        ready.unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SOFTPROMPT_", "RAY_"))}
        settings = {
            "BASE_MODELS": f"tiny={self._model}",
            "DATA_DIR": str(self._directory / "data"),
            "READY_FILE": str(ready),
            "CHECKPOINT_SECONDS": "0.2",
            "DEVICE": "cpu",
        }
        environment |= {f"SOFTPROMPT_TRAINER_{name}": value for name, value in settings.items()}
        self._spawn(environment)

        def is_ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, (self._directory / "log").read_text()[-3000:]
            return ready.exists()

        await until(is_ready)
        return int(json.loads(ready.read_bytes())["port"])

    def _spawn(self, environment: dict[str, str]) -> None:
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", "trainer_service"], env=environment, stdout=log, stderr=log)

    def descendants(self) -> list[psutil.Process]:
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self) -> int:
        """The exit status after SIGTERM."""
        assert self._process is not None
        self._process.terminate()
        status = self._process.wait(60)
        self._process = None
        return status


async def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def trainer(tmp_path: Path, tiny_model_dir: Path) -> Iterator[TrainerProcess]:
    process = TrainerProcess(tmp_path, tiny_model_dir)
    yield process
    process.kill()


def request() -> tuning_pb2.CreateTuningJobRequest:
    examples = [tuning_pb2.Example(input=f"question {number}", output="yes") for number in range(24)]
    spec = tuning_pb2.TuningSpec(prompt="tone", dataset=tuning_pb2.DatasetSource(inline=tuning_pb2.InlineDataset(examples=examples)))
    spec.hyperparameters.num_steps = 300
    spec.hyperparameters.batch_size = 4
    return tuning_pb2.CreateTuningJobRequest(spec=spec, request_id="once")


async def test_a_killed_trainer_leaves_nothing_behind_and_goes_on_after_its_restart(trainer: TrainerProcess) -> None:
    port = await trainer.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: tuning_pb2_grpc.TuningServiceAsyncStub = tuning_pb2_grpc.TuningServiceStub(channel)  # type: ignore[assignment]
        name = (await stub.CreateTuningJob(request())).job.name
        last = 0
        async for response in stub.WatchTuningJob(tuning_pb2.WatchTuningJobRequest(name=name)):
            last = response.event.number
            if response.event.progress.step > 30:
                break
    processes = trainer.descendants()
    assert len(processes) >= 5, "Ray's servers, its agents, and a worker"
    trainer.kill()
    await until(lambda: all(gone(process) for process in processes), seconds=30)

    port = await trainer.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = tuning_pb2_grpc.TuningServiceStub(channel)  # type: ignore[assignment]
        assert (await stub.CreateTuningJob(request())).job.name == name
        numbers, job = list[int](), tuning_pb2.TuningJob()
        async for response in stub.WatchTuningJob(tuning_pb2.WatchTuningJobRequest(name=name, after=last)):
            numbers.append(response.event.number)
            if response.event.HasField("state_changed"):
                job = response.event.state_changed
        assert numbers == list(range(last + 1, last + 1 + len(numbers)))
        assert job.state == State.STATE_SUCCEEDED
        assert job.result.version == "prompts/tone/versions/1"
        assert job.attempt == 2
    processes = trainer.descendants()
    assert trainer.terminate() == 0
    await until(lambda: all(gone(process) for process in processes), seconds=30)
