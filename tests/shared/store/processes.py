"""Real publisher processes for the tests, run as `python -m tests.shared.store.processes COMMAND URL`.

The modules are imported once and the publishers forked: eight imports of torch would take longer than the test.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from shared.errors import Unavailable
from shared.store import PromptStore
from shared.store.open import open_backend
from tests.shared.prompt.blobs import make_blob
from tests.shared.store.faults import FaultyBackend, unreliable

PROMPT = "support-tone"
NUM_PUBLISHERS = 8
JOBS_EACH = 6


def fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def publish_jobs(url: str, publisher: int, seed: int) -> None:
    """Publishes like the trainer: retries each job until it is acknowledged, on a store that fails a tenth of the
    calls.
    """
    backend = FaultyBackend(open_backend(url))
    store = PromptStore(backend)
    backend.on_write = unreliable(seed, share=0.04)
    for job in range(JOBS_EACH):
        while True:
            try:
                store.publish(PROMPT, make_blob(seed=publisher * 100 + job), job=f"job-{publisher}-{job}")
                break
            except Unavailable:
                time.sleep(0.001)


def crowd(url: str) -> int:
    """Eight concurrent publishers on one prompt; from time to time, one is killed with SIGKILL and restarted."""
    chance = random.Random(1)
    seeds = itertools.count()
    running = {fork(partial(publish_jobs, url, number, next(seeds))): number for number in range(NUM_PUBLISHERS)}
    kills = 0
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            if kills < 12:
                os.kill(chance.choice(list(running)), signal.SIGKILL)
                kills += 1
            time.sleep(0.02)
            continue
        number = running.pop(pid)
        if os.WIFSIGNALED(status):
            seed = 1000 + next(seeds)
            running[fork(partial(publish_jobs, url, number, seed))] = number
        elif os.WEXITSTATUS(status):
            return 1
    print(f"kills {kills}")
    return 0


def killed_at_every_system_call(url: str) -> int:
    """Publishers one after another, each killed at the next change to the file system, until one finishes."""
    for number in itertools.count(1):
        pid = fork(partial(publish_killed_at, url, number))
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            print(f"kills {number - 1}")
            return os.WEXITSTATUS(status)
    return 1


def publish_killed_at(url: str, number: int) -> None:
    calls = itertools.count(1)

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    store = PromptStore(open_backend(url))
    for name in ("fsync", "link", "unlink", "mkdir", "replace", "open"):
        setattr(os, name, deadly(getattr(os, name)))
    store.publish(PROMPT, make_blob(seed=number), job=f"job-{number}")


if __name__ == "__main__":
    command = {"crowd": crowd, "killed": killed_at_every_system_call}[sys.argv[1]]
    sys.exit(command(sys.argv[2]))
