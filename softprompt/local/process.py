"""One service as a child process: start it, wait until it serves, forward its log, drain it, kill it at last."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.process.standard_streams import ERROR_MARK

LogSink = Callable[[str, str], None]
"""Called with (service name, line)."""

POLL_SECONDS = 0.05
KEPT_LINES = 30


class ServiceFailed(Exception):
    """A service ended unexpectedly; the text has its error or its last log lines."""


@dataclass(frozen=True)
class Ready:
    """The ports of a service, from its readiness file."""

    port: int
    metrics_port: int
    pid: int


class ServiceProcess:
    """`python -m MODULE` in a new session: Ctrl-C reaches only the parent, which shuts down in order."""

    def __init__(self, name: str, module: str, environment: Mapping[str, str], ready_file: Path, log: LogSink) -> None:
        self.name = name
        self._module, self._environment, self._ready_file, self._log = module, environment, ready_file, log
        self._process: asyncio.subprocess.Process | None = None
        self._forwarding: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def session(self) -> int | None:
        """Id of its session; None before the start. Its children are in this session unless they create their own."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process and the forwarding of its log."""
        command = [sys.executable, "-m", "softprompt.local.child", str(os.getpid()), sys.executable, "-m", self._module]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **self._environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self._forwarding = asyncio.create_task(self._forward(self._process), name=f"log of {self.name}")

    async def ready(self, timeout_seconds: float) -> Ready:
        """Wait until it can serve. Raises ServiceFailed if it ends first or takes longer than `timeout_seconds`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self._ready_file.exists():
                    if self._started.returncode is not None:
                        raise await self._failure()
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            late = f"the {self._noun} is not ready after {timeout_seconds:g} s"
            raise ServiceFailed(f"{late}:\n{self._words()}") from None
        content = json.loads(self._ready_file.read_bytes())
        return Ready(content["port"], content["metrics_port"], content["pid"])

    async def ended(self) -> ServiceFailed:
        """Wait until it ends by itself; its error."""
        await self._exit()
        return await self._failure()

    def terminate(self) -> None:
        """Ask it to drain and stop."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    async def wait(self, timeout_seconds: float) -> None:
        """Wait until it has ended. Kills it after `timeout_seconds`."""
        if self._process is None:
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._exit()
        except TimeoutError:
            self._log(self.name, f"did not stop within {timeout_seconds:g} s: killed")
            self.kill()
            await self._exit()
        await self._finish_log()

    @property
    def _noun(self) -> str:
        return "inference service" if self.name == "inference" else self.name

    @property
    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError(f"the {self._noun} has not been started")
        return self._process

    async def _exit(self) -> None:
        """Wait until the process has ended. asyncio's `wait` waits for its pipe, too, which a grandchild may hold."""
        while self._started.returncode is None:
            await asyncio.sleep(POLL_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _failure(self) -> ServiceFailed:
        await self._finish_log()
        if sentence := self._sentence():
            return ServiceFailed(f"the {self._noun} ended: {sentence}")
        return ServiceFailed(f"the {self._noun} ended with exit code {self._started.returncode}:\n{self._words()}")

    def _sentence(self) -> str:
        """The error that it printed; empty if it printed none."""
        lines = list(self._last_lines)
        begin = next((number for number, line in enumerate(lines) if line.startswith(ERROR_MARK)), len(lines))
        return "\n".join(lines[begin:]).removeprefix(ERROR_MARK)

    def _words(self) -> str:
        return "\n".join(f"  {line}" for line in self._last_lines) or "  (no output)"

    async def _forward(self, process: asyncio.subprocess.Process) -> None:
        if process.stdout is None:
            return
        rest = b""
        while piece := await process.stdout.read(1 << 16):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._take(line)
        if rest:
            self._take(rest)

    def _take(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        self._last_lines.append(text)
        self._log(self.name, text)

    async def _finish_log(self) -> None:
        """Read the rest of the log, for at most a second, since a grandchild may hold the pipe open."""
        if self._forwarding is not None:
            await asyncio.wait([self._forwarding], timeout=1)
            self._forwarding.cancel()
