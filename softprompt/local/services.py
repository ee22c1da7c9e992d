"""The trainer, the inference service and the gateway on this machine, with one data directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from shared.package_names import package_name
from softprompt.local.process import LogSink, Ready, ServiceFailed, ServiceProcess

READY_SECONDS = 180.0
DRAIN_MARGIN_SECONDS = 10.0  # after the grace time: checkpoints, and the shutdown of Ray
RAY_END_SECONDS = 8.0


RUN_VARIABLE = "SOFTPROMPT_LOCAL_RUN"


def processes_of(run: str, sessions: Collection[int] = ()) -> list[psutil.Process]:
    """Living processes of the run, without this one. Ray's need two criteria: an inherited variable finds those with
    sessions of their own, the services' sessions those that overwrote their environment with a title.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # processes of other users, and processes that end now
            is_living = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if is_living and _belongs(process, run, sessions):
                found.append(process)
    return found


def _belongs(process: psutil.Process, run: str, sessions: Collection[int]) -> bool:
    try:
        if os.getsid(process.pid) in sessions:
            return True
    except (ProcessLookupError, PermissionError):
        return False
    return bool(process.environ().get(RUN_VARIABLE) == run)


async def wait_until_gone(run: str, sessions: Collection[int], timeout_seconds: float) -> list[psutil.Process]:
    """The processes that are alive after at most `timeout_seconds`."""
    deadline = time.monotonic() + timeout_seconds
    while (alive := processes_of(run, sessions)) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return alive


def kill(run: str, sessions: Collection[int] = ()) -> int:
    """Send SIGKILL to every process of the run. Returns their number."""
    killed = 0
    while alive := processes_of(run, sessions):
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        killed += len(alive)
        psutil.wait_procs(alive, timeout=5)
    return killed


@dataclass(frozen=True)
class LocalConfig:
    """The settings of all processes."""

    model: Path
    data_dir: Path
    """Jobs, datasets, checkpoints and the prompt store."""
    host: str = "127.0.0.1"
    trainer_port: int = 0
    """0 chooses a free one."""
    inference_port: int = 0
    grace_seconds: float = 10.0
    """Time for running streams to finish at the end."""
    plaintext: bool = False
    """Serve other machines without TLS. Files for TLS are set by the services' own variables."""
    gateway_port: int | None = None
    """Port of the gateway; 0 chooses a free one, None starts none."""
    inference_dtype: str = ""
    """Numbers of the replica's model; empty: as its own settings say."""

    def trainer_settings(self) -> dict[str, str]:
        """Environment variables of the trainer. Paths are absolute: it may have another working directory."""
        prefix = "SOFTPROMPT_TRAINER_"
        return {
            **self._common_settings(prefix, self.trainer_port),
            f"{prefix}BASE_MODELS": str(self.model.absolute()),
            f"{prefix}DATA_DIR": str(self.data_dir.absolute()),
        }

    def inference_settings(self) -> dict[str, str]:
        """Environment variables of the inference service."""
        prefix = "SOFTPROMPT_INFERENCE_"
        dtype = {f"{prefix}DTYPE": self.inference_dtype} if self.inference_dtype else {}
        return {
            **self._common_settings(prefix, self.inference_port),
            **dtype,
            f"{prefix}BASE_MODEL": str(self.model.absolute()),
            f"{prefix}STORE_URL": str((self.data_dir / "prompts").absolute()),
            f"{prefix}USAGE_DIR": str((self.data_dir / "usage").absolute()),
        }

    def gateway_settings(self, trainer: str, inference: str) -> dict[str, str]:
        """Environment variables of the gateway in front of these services."""
        prefix = "SOFTPROMPT_GATEWAY_"
        plaintext = {"SOFTPROMPT_TLS": "off"} if self.plaintext else {}
        return {
            **self._common_settings(prefix, self.gateway_port or 0),
            f"{prefix}TRAINER": trainer,
            f"{prefix}INFERENCE": inference,
            **plaintext,
        }

    def _common_settings(self, prefix: str, port: int) -> dict[str, str]:
        common = {"HOST": self.host, "PORT": str(port), "GRACE_SECONDS": str(self.grace_seconds)}
        common |= {"PLAINTEXT": "true"} if self.plaintext else {}
        return {f"{prefix}{name}": value for name, value in common.items()}


class LocalServices:
    """`async with LocalServices(config, log) as services`: all serve inside the block; no process is left after it."""

    def __init__(self, config: LocalConfig, log: LogSink) -> None:
        self._config, self._log = config, log
        self.run = uuid.uuid4().hex
        self._processes: list[ServiceProcess] = []
        self._ready: list[Ready] = []

    async def __aenter__(self) -> Self:
        directory = tempfile.TemporaryDirectory(prefix="softprompt-")
        try:
            await self._start(Path(directory.name))
        except BaseException:
            await self.stop()
            raise
        finally:
            directory.cleanup()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def trainer_endpoint(self) -> str:
        """`host:port` of the trainer, once it serves."""
        return f"{self._config.host}:{self._ready[0].port}"

    @property
    def inference_endpoint(self) -> str:
        """`host:port` of the inference service, once it serves."""
        return f"{self._config.host}:{self._ready[1].port}"

    @property
    def gateway_url(self) -> str | None:
        """Address of OpenAI's API, once the gateway serves; None without one."""
        if len(self._ready) < 3:
            return None
        return f"http://{self._config.host}:{self._ready[2].port}/v1"

    async def failure(self) -> ServiceFailed:
        """Wait until one of the processes ends by itself; its error."""
        waits = [asyncio.create_task(process.ended()) for process in self._processes]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            for task in waits:
                task.cancel()

    async def stop(self) -> None:
        """Drain all processes, wait, and kill what is left of them or of Ray. May be called twice."""
        for process in self._processes:
            process.terminate()
        longest = self._config.grace_seconds + DRAIN_MARGIN_SECONDS
        await asyncio.gather(*(process.wait(longest) for process in self._processes))
        if left := await wait_until_gone(self.run, self._sessions, RAY_END_SECONDS):
            self._log("local", f"killing {len(left)} processes that did not end by themselves")
            kill(self.run, self._sessions)

    def kill_now(self) -> None:
        """Kill every process of this run, without draining."""
        kill(self.run, self._sessions)

    def alive(self) -> list[str]:
        """Living processes of this run, each as `PID NAME`."""
        return [f"{process.pid} {process.name()}" for process in processes_of(self.run, self._sessions)]

    @property
    def _sessions(self) -> set[int]:
        return {process.session for process in self._processes if process.session is not None}

    async def _start(self, directory: Path) -> None:
        settings = {"trainer": self._config.trainer_settings(), "inference": self._config.inference_settings()}
        for name, environment in settings.items():
            await self._begin(name, package_name(f"{name}_service"), environment, directory)
        try:
            async with asyncio.TaskGroup() as group:
                readiness = [group.create_task(process.ready(READY_SECONDS)) for process in self._processes]
        except* ServiceFailed as failures:
            raise failures.exceptions[0] from None
        self._ready = [task.result() for task in readiness]
        if self._config.gateway_port is not None:
            trainer, inference = (f"{_reachable(self._config.host)}:{ready.port}" for ready in self._ready)
            environment = self._config.gateway_settings(trainer, inference)
            gateway = await self._begin("gateway", "softprompt.gateway", environment, directory)
            self._ready.append(await gateway.ready(READY_SECONDS))

    async def _begin(self, name: str, module: str, environment: Mapping[str, str], directory: Path) -> ServiceProcess:
        ready_file = directory / f"{name}.json"
        marks = {RUN_VARIABLE: self.run, f"SOFTPROMPT_{name.upper()}_READY_FILE": str(ready_file)}
        process = ServiceProcess(name, module, {**environment, **marks}, ready_file, self._log)
        self._processes.append(process)
        await process.start()
        return process


def _reachable(host: str) -> str:
    """The address by which this machine reaches a service that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
