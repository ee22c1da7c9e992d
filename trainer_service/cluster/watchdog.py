"""Ends what an embedded Ray leaves running when the process that started it is gone, however it went: `kill -9`
included.

Ray's servers and idle workers notice a dead driver within seconds, its two agents after a minute and a half, a stopped
worker never. So a small process of its own waits for the end of a pipe that only the service holds. Only processes that
the service named are ended, each by process id and time of creation: a number that was given to somebody else meanwhile
is left alone.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import IO

import psutil

GRACE_SECONDS = 3.0
"""For processes that are about to end by themselves."""
_END_SECONDS = 15.0


class Watchdog:
    """The service's side. Starting it takes no wait; `close` is for a service that ends in order."""

    def __init__(self) -> None:
        # A session of its own: a Ctrl-C or a kill that is meant for the service's group must not end it before its
        # time.
        command, nobody = [sys.executable, "-I", __file__], subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=nobody, text=True, start_new_session=True
        )
        self._named: set[tuple[int, float]] = set()
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    def name(self, processes: Iterable[psutil.Process]) -> None:
        """These are to be gone when this process is. Naming one again does nothing."""
        pipe = self._process.stdin
        with self._lock, contextlib.suppress(BrokenPipeError):
            for process in processes:
                key = process.pid, process.create_time()
                if pipe is not None and key not in self._named:
                    self._named.add(key)
                    pipe.write(f"{key[0]} {key[1]!r}\n")
                    pipe.flush()

    def close(self) -> None:
        """Returns when every named process is gone."""
        with contextlib.suppress(BrokenPipeError), self._lock:
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)


def read_names(lines: IO[str]) -> Mapping[int, float]:
    """Time of creation by process id; ends when nobody can write any more."""
    names: dict[int, float] = {}
    for line in lines:
        pid, _, created = line.partition(" ")
        names[int(pid)] = float(created)
    return names


def _same(names: Mapping[int, float]) -> Iterator[psutil.Process]:
    """Those that still run and are still who they were."""
    for pid, created in names.items():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == created:
                yield process


def end(names: Mapping[int, float], grace_seconds: float = GRACE_SECONDS) -> None:
    _, alive = psutil.wait_procs(list(_same(names)), timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_seconds)


if __name__ == "__main__":
    end(read_names(sys.stdin))
