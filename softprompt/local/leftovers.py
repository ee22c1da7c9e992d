"""Find and kill every process of one local run, wherever it is in the process tree.

Ray's processes need two criteria. A variable that children inherit finds processes that created sessions of their own;
the services' sessions find processes that overwrote their environment with a title.
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
    """Living processes with the run's variable or in one of the sessions, without this process."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # processes of other users, and processes that end now
            if (
                process.pid != os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
                and _belongs(process, run, sessions)
            ):
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
