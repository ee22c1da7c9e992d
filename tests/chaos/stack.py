"""The real stack: each part is a process with a supervisor that starts it again whenever it ends."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from tests.forks import end_with_the_starter
from tests.ports import free_port
from tests.simulation.history import History
from tests.trainer_service.postgres import Postgres
from tests.waiting import until

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "__main__",
        "trainer_service.server",
        "inference_service.server",
        "transformers.models.llama.modeling_llama",
        "softprompt.router.server",
        "softprompt.gateway.server",
        "tests.chaos.object_server",
    ]
)


def _run(command: tuple[str, ...], environment: Mapping[str, str], log: Path) -> None:
    """A process of a part: forked from one that has imported the programs, so that a start costs little."""
    end_with_the_starter()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=False)


@dataclass
class Part:
    """One process. `ready_file`: exists once it serves, if the program writes one."""

    kind: str
    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    history: History
    port: int = field(default_factory=free_port)
    ready_file: Path | None = None
    process: BaseProcess | None = None
    was_killed: bool = False
    """Whether its next end is our doing."""
    num_failed_starts: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def serves(self) -> bool:
        """Whether it has said so in this life."""
        return self.process is not None and (self.ready_file is None or self.ready_file.exists())

    async def supervise(self) -> None:
        """Starts it, and again after each end."""
        while True:
            if self.ready_file is not None:
                self.ready_file.unlink(missing_ok=True)
            process = _FORKS.Process(
                target=_run, args=(self.command, self.environment, self.directory / f"{self.name}.log"), name=self.name
            )
            process.start()
            self.process = process
            while process.is_alive():
                await asyncio.sleep(0.05)
            if self.was_killed:
                self.was_killed = False
            elif self.serves:
                self.history.add("died", server=self.name, why=f"exit status {process.exitcode}")
            else:
                self.num_failed_starts += 1
            self.process = None
            await asyncio.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            self.was_killed = True
            self.process.kill()

    def descendant(self, name: str) -> psutil.Process | None:
        """A process below it whose command line contains this text."""
        if self.process is None:
            return None
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if name in " ".join(process.cmdline()):
                        return process
        return None


class Stack:
    """All parts over one PostgreSQL and one S3 server."""

    def __init__(
        self, directory: Path, model: Path, callers: Path, postgres: Postgres, url: str, history: History, of_each: int
    ) -> None:
        """`of_each`: number of trainers, and of replicas."""
        self.directory, self.postgres, self.history = directory, postgres, history
        self.objects_dir = directory / "objects"
        self.s3 = self._part("S3 server", "s3", "tests.chaos.object_server", {})
        self.s3.command += (str(self.objects_dir), str(self.s3.port))
        store = {"STORE_URL": "s3://prompts/store"}
        common = {"CALLERS_FILE": callers, "DEVICE": "cpu", "DTYPE": "float32", "GRACE_SECONDS": 5, **store}
        training = {
            "BASE_MODELS": f"tiny={model}",
            "DATA_DIR": directory / "data",
            "DATABASE_URL": url,
            "CHECKPOINT_SECONDS": 1,
            "CPUS_PER_WORKER": 1,
            "MAX_WORKERS": 2,
            "MAX_JOBS_PER_WORKER": 3,
            "LEASE_SECONDS": 20,
            "MAX_INFRASTRUCTURE_FAILURES": 1000,
        }
        serving = {"BASE_MODEL": model, "BASE_MODEL_ID": "tiny", "NUM_THREADS": 1, "HEARTBEAT_SECONDS": 1}
        serving |= {"POLL_SECONDS": 0.5, "USAGE_DIR": directory / "usage", "LOG_LEVEL": "WARNING"}
        self.trainers = [
            self._part("trainer", f"trainer-{number}", "trainer_service", common | training, "TRAINER")
            for number in range(of_each)
        ]
        self.replicas = [
            self._part("replica", name, "inference_service", common | serving | {"REPLICA": name}, "INFERENCE")
            for name in (f"replica-{number}" for number in range(of_each))
        ]
        routing = store | {"POLL_SECONDS": 0.5, "GRACE_SECONDS": 5, "LOG_LEVEL": "WARNING"}
        self.router = self._part("router", "router", "softprompt.router", routing, "ROUTER")
        addresses = {"TRAINER": self.trainers[0].address, "INFERENCE": self.router.address, "GRACE_SECONDS": 5}
        self.gateway = self._part("gateway", "gateway", "softprompt.gateway", addresses, "GATEWAY")
        self._supervisors: list[asyncio.Task[None]] = []

    @property
    def parts(self) -> list[Part]:
        return [self.s3, *self.trainers, *self.replicas, self.router, self.gateway]

    def _part(self, kind: str, name: str, module: str, settings: Mapping[str, Any], prefix: str = "") -> Part:
        part = Part(kind, name, (module,), {}, self.directory, self.history)
        own = {f"SOFTPROMPT_{prefix}_{key}": str(value) for key, value in settings.items()}
        if prefix:
            part.ready_file = self.directory / f"{name}.json"
            own |= {
                f"SOFTPROMPT_{prefix}_PORT": str(part.port),
                f"SOFTPROMPT_{prefix}_READY_FILE": str(part.ready_file),
            }
            own |= {f"AWS_{key}": "test" for key in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "REGION")}
            own |= {"AWS_ENDPOINT": f"http://{self.s3.address}"}
        part.environment = own
        return part

    async def start(self) -> None:
        """Returns once all of it serves."""
        self._supervisors = [asyncio.create_task(part.supervise()) for part in self.parts]
        await until(lambda: all(part.serves for part in self.parts))

    async def restart_postgres(self) -> None:
        """A supervisor tries until the processes of the killed one are gone."""
        while True:
            try:
                await asyncio.to_thread(self.postgres.start)
                return
            except RuntimeError:
                await asyncio.sleep(0.2)

    async def close(self) -> None:
        """Kills everything."""
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        for part in self.parts:
            if part.process is not None:
                part.process.kill()
