"""Every process of one local run, wherever it has moved in the process tree.

Two nets, since Ray's processes slip through either: a mark that children inherit in their environment finds those that made sessions of
their own, and the services' sessions find those that wrote a title over their environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Collection

import psutil

RUN_VARIABLE = "SOFTPROMPT_LOCAL_RUN"


def processes_of(run: str, sessions: Collection[int] = ()) -> list[psutil.Process]:
    """Living processes that carry the mark, or belong to one of the sessions; this one excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # others' processes, and those that end meanwhile
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and _belongs(process, run, sessions):
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
    """What is still alive after waiting for up to `timeout_seconds`."""
    deadline = time.monotonic() + timeout_seconds
    while (alive := processes_of(run, sessions)) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return alive


def kill(run: str, sessions: Collection[int] = ()) -> int:
    """SIGKILL to every process of the run; how many there were."""
    killed = 0
    while alive := processes_of(run, sessions):
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        killed += len(alive)
        psutil.wait_procs(alive, timeout=5)
    return killed
