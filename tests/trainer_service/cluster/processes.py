"""Trainers as separate processes that tests kill, and their callers."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
from prompttuning.v1 import tuning_pb2 as pb
from prompttuning.v1 import tuning_pb2_grpc

from tests.forks import end_with_the_starter
from tests.waiting import until

State = pb.TuningJob.State
_FORKS = multiprocessing.get_context("forkserver")
_IMPORTED = (
    "trainer_service.server",
    "trainer_service.cluster.worker_init",
    "transformers.models.llama.modeling_llama",
)
"""Not Ray, which reads its variables when it is imported."""


def _run(environment: Mapping[str, str], log: Path) -> None:
    end_with_the_starter()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["trainer_service"]
    from trainer_service.__main__ import main

    sys.exit(main())


class ForkedTrainer:
    """The trainer service, forked from a process that has imported it, with what tests use of `subprocess.Popen`.

    Its imports would take most of the processor time of its start.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        _FORKS.set_forkserver_preload(list(_IMPORTED))
        self._process = _FORKS.Process(target=_run, args=(environment, log))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


class TrainerProcess:
    """Call `start`, break it, `start` again: always on the same data directory."""

    def __init__(
        self,
        directory: Path,
        model: Path,
        name: str = "trainer",
        environment: dict[str, str] | None = None,
        module: str = "",
        **settings: Any,
    ) -> None:
        """`module`: a program to start in the trainer's place, in a new interpreter."""
        self._module = module
        self._ready, self._log = directory / f"{name}.json", directory / f"{name}.log"
        everything = {
            "BASE_MODELS": f"tiny={model}",
            "DATA_DIR": directory / "data",
            "READY_FILE": self._ready,
            "CHECKPOINT_SECONDS": 0.2,
            "CPUS_PER_WORKER": 1,  # two threads of a worker take four times the processor time beside other processes
            "DEVICE": "cpu",
            "DTYPE": "float32",
            **settings,
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SOFTPROMPT_", "RAY_"))}
        self._environment = (
            inherited
            | {f"SOFTPROMPT_TRAINER_{name}": str(value) for name, value in everything.items()}
            | (environment or {})
        )
        self._process: subprocess.Popen[bytes] | ForkedTrainer | None = None

    def is_ready(self) -> bool:
        """Whether it says that it serves."""
        return self._ready.exists()

    async def start(self, *, forked: bool = True) -> None:
        """Waits until it serves. `forked` False: starts the command in a new interpreter."""
        self._ready.unlink(missing_ok=True)
        self._spawn(forked)

        def is_ready() -> bool:
            assert self.process.poll() is None, self.log[-3000:]
            return self.is_ready()

        await until(is_ready)

    def _spawn(self, forked: bool) -> None:
        if forked and not self._module:
            self._process = ForkedTrainer(self._environment, self._log)
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module or "trainer_service"], env=self._environment, stdout=log, stderr=log
            )

    @property
    def process(self) -> subprocess.Popen[bytes] | ForkedTrainer:
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{json.loads(self._ready.read_bytes())['port']}"

    def descendants(self, containing: str = "") -> list[psutil.Process]:
        """Its processes and their children whose command line contains a text."""
        return descendants_of(self.process.pid, containing)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self) -> int:
        """The exit status after SIGTERM."""
        self.process.terminate()
        status = self.process.wait()
        self._process = None
        return status


class Caller:
    """A caller of one trainer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = tuning_pb2_grpc.TuningServiceStub(channel)

    async def create(
        self, prompt: str = "tone", num_steps: int = 300, request_id: str = "", base_model: str = ""
    ) -> str:
        """The job's name."""
        examples = [pb.Example(input=f"question {number}", output="yes") for number in range(24)]
        spec = pb.TuningSpec(prompt=prompt, dataset=pb.DatasetSource(inline=pb.InlineDataset(examples=examples)))
        spec.base_model = base_model
        spec.hyperparameters.num_steps = num_steps
        spec.hyperparameters.batch_size = 4
        spec.hyperparameters.evaluation_interval_steps = num_steps
        return str(
            (await self._stub.CreateTuningJob(pb.CreateTuningJobRequest(spec=spec, request_id=request_id))).job.name
        )

    async def get(self, name: str) -> pb.TuningJob:
        return (await self._stub.GetTuningJob(pb.GetTuningJobRequest(name=name))).job

    async def reach(self, name: str, step: int, attempt: int = 1) -> float:
        """Waits until the attempt has done this number of steps; returns the time."""
        begun = False
        async for response in self._stub.WatchTuningJob(pb.WatchTuningJobRequest(name=name)):
            event = response.event
            begun = begun or event.state_changed.attempt >= attempt
            if begun and event.progress.step >= step:
                return float(event.time.ToNanoseconds() / 1e9)
        raise AssertionError(f"{name} ended before step {step} of attempt {attempt}")

    async def ended(self, name: str) -> pb.TuningJob:
        """The job after its end; asserts that every event number came once."""
        job, numbers = pb.TuningJob(), list[int]()
        async for response in self._stub.WatchTuningJob(pb.WatchTuningJobRequest(name=name)):
            if response.event.HasField("heartbeat"):
                continue
            numbers.append(response.event.number)
            if response.event.HasField("state_changed"):
                job = response.event.state_changed
        assert numbers == list(range(1, len(numbers) + 1))
        return job

    async def noted(self, name: str, text: str) -> None:
        """Waits for a note that contains the text."""
        async for response in self._stub.WatchTuningJob(pb.WatchTuningJobRequest(name=name)):
            if text in response.event.note:
                return
        raise AssertionError(f"{name} ended without a note of {text!r}")

    async def cancel(self, name: str) -> None:
        await self._stub.CancelTuningJob(pb.CancelTuningJobRequest(name=name))

    async def notes(self, name: str) -> list[str]:
        """The texts of an ended job's notes."""
        watch = self._stub.WatchTuningJob(pb.WatchTuningJobRequest(name=name))
        return [response.event.note async for response in watch if response.event.HasField("note")]

    async def events_after(self, name: str, after: int) -> list[int]:
        """The numbers of a watch's events, up to the last one."""
        watch = self._stub.WatchTuningJob(pb.WatchTuningJobRequest(name=name, after=after))
        return [response.event.number async for response in watch if not response.event.HasField("heartbeat")]


def descendants_of(process_id: int, containing: str) -> list[psutil.Process]:
    """Children, their children and so on whose command line contains a text."""
    found = []
    for process in psutil.Process(process_id).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if containing in " ".join(process.cmdline()):
                found.append(process)
    return found


def channel_to(trainer: TrainerProcess) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(trainer.address)


def gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def until_gone(processes: list[psutil.Process]) -> None:
    await until(lambda: all(gone(process) for process in processes))
