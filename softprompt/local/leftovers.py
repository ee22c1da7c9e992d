"""Every process of one local run, found by a mark in its environment, wherever it has moved in the process tree.

Ray's processes detach themselves; a mark that children inherit finds them when process groups and parents don't.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

import psutil

RUN_VARIABLE = "SOFTPROMPT_LOCAL_RUN"


def processes_of(run: str) -> list[psutil.Process]:
    """Living processes whose environment carries the mark, this one excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # others' processes, and those that end meanwhile
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and process.environ().get(RUN_VARIABLE) == run:
                found.append(process)
    return found


async def wait_until_gone(run: str, timeout_seconds: float) -> list[psutil.Process]:
    """What is still alive after waiting for up to `timeout_seconds`."""
    deadline = time.monotonic() + timeout_seconds
    while (alive := processes_of(run)) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return alive


def kill(run: str) -> int:
    """SIGKILL to every process of the run; how many there were."""
    killed = 0
    while alive := processes_of(run):
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        killed += len(alive)
        psutil.wait_procs(alive, timeout=5)
    return killed
