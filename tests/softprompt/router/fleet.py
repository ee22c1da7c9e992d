"""Replicas and routers as real processes, forked from one that has imported what they need."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.forks import end_with_the_starter
from tests.waiting import until

_FORKS = multiprocessing.get_context("forkserver")
_INFERENCE = {"DTYPE": "float32", "DEVICE": "cpu", "NUM_THREADS": "1", "HEARTBEAT_SECONDS": "0.5"}
_COMMON = {"PORT": "0", "LOG_LEVEL": "ERROR", "GRACE_SECONDS": "600"}
_IMPORTED = ("inference_service.server", "transformers.models.llama.modeling_llama", "softprompt.router.server")


def _run(program: str, environment: Mapping[str, str]) -> None:
    end_with_the_starter()
    os.environ.update(environment)
    sys.argv = [program]
    if program == "inference":
        from inference_service.__main__ import main

        sys.exit(main())
    from shared.process.service import run_configured
    from softprompt.router.server import serve
    from softprompt.router.settings import RouterSettings

    sys.exit(run_configured(RouterSettings, serve))


@dataclass
class Running:
    """One process that serves, and its ports."""

    process: BaseProcess
    ports: Mapping[str, int]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['port']}"

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    async def ended(self) -> int | None:
        await until(lambda: not self.process.is_alive())
        return self.process.exitcode


@dataclass
class Fleet:
    """Starts processes over one store."""

    directory: Path
    processes: list[BaseProcess] = field(default_factory=list)

    @property
    def store_dir(self) -> Path:
        return self.directory / "store"

    async def replica(self, name: str, model_dir: Path, **settings: str) -> Running:
        """`name`: of the replica; its base model's id is the directory's name."""
        chosen = {**_INFERENCE, "BASE_MODEL": str(model_dir), "REPLICA": name, **settings}
        return await self._started("inference", name, chosen)

    async def router(self, **settings: str) -> Running:
        """Ready once it has found a replica."""
        return await self._started("router", "router", settings)

    def forked(self, name: str, target: Callable[..., object], *arguments: Any) -> BaseProcess:
        """A process that calls `target`, a function of a module."""
        process = _FORKS.Process(target=target, args=arguments, name=name)
        process.start()
        self.processes.append(process)
        return process

    async def _started(self, program: str, name: str, settings: Mapping[str, str]) -> Running:
        ready = self.directory / f"{name}-{len(self.processes)}.json"
        common = {**_COMMON, "STORE_URL": str(self.store_dir), "READY_FILE": str(ready)}
        environment = {f"SOFTPROMPT_{program.upper()}_{key}": value for key, value in {**common, **settings}.items()}
        process = self.forked(name, _run, program, environment)
        await until(lambda: ready.exists() or not process.is_alive())
        assert process.is_alive(), f"{name} ended before it was ready"
        return Running(process, json.loads(ready.read_bytes()))


@contextmanager
def fleet(directory: Path, imported: Sequence[str] = _IMPORTED) -> Iterator[Fleet]:
    """Every process ends with the block. `imported`: modules that the fork server imports, once for all processes."""
    _FORKS.set_forkserver_preload(list(imported))
    made = Fleet(directory)
    try:
        yield made
    finally:
        for process in made.processes:
            process.kill()
        for process in made.processes:
            process.join()
            process.close()


async def gathered(*starts: Any) -> list[Running]:
    """Processes that start together."""
    return list(await asyncio.gather(*starts))
