"""The trainer and the inference service on this machine, over one data directory, with a start and an end."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from softprompt.local.leftovers import RUN_VARIABLE, kill, processes_of, wait_until_gone
from softprompt.local.process import LogSink, Ready, ServiceFailed, ServiceProcess

READY_SECONDS = 180.0
RAY_END_SECONDS = 8.0


@dataclass(frozen=True)
class LocalConfig:
    """What both services are told."""

    model: Path
    data_dir: Path
    """Jobs, datasets, checkpoints and the prompt store."""
    host: str = "127.0.0.1"
    trainer_port: int = 0
    """0 takes a free one."""
    inference_port: int = 0
    grace_seconds: float = 10.0
    """How long running streams may take to finish at the end."""


class LocalServices:
    """`async with LocalServices(config, log) as services`: both serve within, and not one process is left after it."""

    def __init__(self, config: LocalConfig, log: LogSink) -> None:
        self._config, self._log = config, log
        self.run = uuid.uuid4().hex
        self._directory = tempfile.TemporaryDirectory(prefix="softprompt-")
        ready = Path(self._directory.name)
        self._trainer = ServiceProcess("trainer", "trainer_service", self._trainer_settings(ready), ready / "trainer.json", log)
        self._inference = ServiceProcess("inference", "inference_service", self._inference_settings(ready), ready / "inference.json", log)
        self.trainer_ready: Ready | None = None
        self.inference_ready: Ready | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._trainer.start()
            await self._inference.start()
            async with asyncio.TaskGroup() as group:
                trainer = group.create_task(self._trainer.ready(READY_SECONDS))
                inference = group.create_task(self._inference.ready(READY_SECONDS))
        except BaseException as error:
            await self.stop()
            if isinstance(error, BaseExceptionGroup):
                raise next(iter(error.exceptions)) from None
            raise
        self.trainer_ready, self.inference_ready = trainer.result(), inference.result()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    @property
    def trainer_endpoint(self) -> str:
        return self._endpoint(self.trainer_ready)

    @property
    def inference_endpoint(self) -> str:
        return self._endpoint(self.inference_ready)

    async def failure(self) -> ServiceFailed:
        """Wait until either service ends by itself."""
        waits = [asyncio.create_task(service.ended()) for service in (self._trainer, self._inference)]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            for task in waits:
                task.cancel()

    async def stop(self) -> None:
        """Drain both, wait, and kill what is left of them or of Ray. Safe to call twice."""
        for service in (self._inference, self._trainer):
            service.terminate()
        longest = self._config.grace_seconds + 10
        await asyncio.gather(self._trainer.wait(longest), self._inference.wait(longest))
        if left := await wait_until_gone(self.run, RAY_END_SECONDS):
            names = ", ".join(sorted({process.name() for process in left if process.is_running()}))
            self._log("local", f"{len(left)} processes did not end by themselves and are killed: {names}")
            kill(self.run)
        self._directory.cleanup()

    def kill_now(self) -> None:
        """No draining: everything of this run ends at once."""
        kill(self.run)

    def alive(self) -> list[str]:
        """Processes of this run that still live, for people."""
        return [f"{process.pid} {process.name()}" for process in processes_of(self.run)]

    def _endpoint(self, ready: Ready | None) -> str:
        if ready is None:
            raise RuntimeError("the services are not started")
        return f"{self._config.host}:{ready.port}"

    def _common_settings(self, prefix: str, port: int, ready_file: Path) -> dict[str, str]:
        return {
            RUN_VARIABLE: self.run,
            f"{prefix}HOST": self._config.host,
            f"{prefix}PORT": str(port),
            f"{prefix}GRACE_SECONDS": str(self._config.grace_seconds),
            f"{prefix}READY_FILE": str(ready_file),
        }

    def _trainer_settings(self, directory: Path) -> dict[str, str]:
        return {
            **self._common_settings("SOFTPROMPT_TRAINER_", self._config.trainer_port, directory / "trainer.json"),
            "SOFTPROMPT_TRAINER_BASE_MODELS": str(self._config.model.absolute()),
            "SOFTPROMPT_TRAINER_DATA_DIR": str(self._config.data_dir.absolute()),
        }

    def _inference_settings(self, directory: Path) -> dict[str, str]:
        return {
            **self._common_settings("SOFTPROMPT_INFERENCE_", self._config.inference_port, directory / "inference.json"),
            "SOFTPROMPT_INFERENCE_BASE_MODEL": str(self._config.model.absolute()),
            "SOFTPROMPT_INFERENCE_STORE_URL": str((self._config.data_dir / "prompts").absolute()),
        }
