"""Ends the processes of an embedded Ray when the process that started it is gone, even after `kill -9`.

Ray's servers and idle workers notice a dead driver within seconds, its two agents after a minute and a half, a stopped
worker never. So a small separate process waits for the end of a pipe that only the service holds. It ends only
processes that the service named, identified by process id and creation time, so a reused id is left alone.
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
"""Time for processes to end by themselves."""
_END_SECONDS = 15.0


class Watchdog:
    """The service's side. Starting it doesn't block; `close` is for an orderly shutdown."""

    def __init__(self) -> None:
        # in a new session, so that Ctrl-C or a signal to the service's group doesn't end it too early
        command = [sys.executable, "-I", __file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
        self._named: set[tuple[int, float]] = set()
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """Process id of the watchdog."""
        return self._process.pid

    def name(self, processes: Iterable[psutil.Process]) -> None:
        """Register processes to end when this process is gone. Registering one again does nothing."""
        pipe = self._process.stdin
        with self._lock, contextlib.suppress(BrokenPipeError):
            for process in processes:
                key = process.pid, process.create_time()
                if pipe is not None and key not in self._named:
                    self._named.add(key)
                    pipe.write(f"{key[0]} {key[1]!r}\n")
                    pipe.flush()

    def close(self) -> None:
        """End the named processes and wait for them, for at most _END_SECONDS."""
        with contextlib.suppress(BrokenPipeError), self._lock:
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)


def read_names(lines: IO[str]) -> Mapping[int, float]:
    """Creation times by process id, read until the pipe is closed."""
    names: dict[int, float] = {}
    for line in lines:
        pid, _, created = line.partition(" ")
        names[int(pid)] = float(created)
    return names


def _same(names: Mapping[int, float]) -> Iterator[psutil.Process]:
    """The named processes that still run, without reused ids."""
    for pid, created in names.items():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == created:
                yield process


def end(names: Mapping[int, float], grace_seconds: float = GRACE_SECONDS) -> None:
    """Wait for the processes to end, then kill the remaining ones."""
    _, alive = psutil.wait_procs(list(_same(names)), timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_seconds)


if __name__ == "__main__":
    end(read_names(sys.stdin))
