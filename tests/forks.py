"""Processes that begin with their imports done: forks of a process that has imported what they need.

For tests that run a program many times only to see how it ends: importing torch takes seconds of processor time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_PARENT = """
import importlib, json, os, sys, traceback

def run(order):
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = order["argv"]
    try:
        exec(compile(order["code"], "forked", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

for module in sys.argv[1:]:
    importlib.import_module(module)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = run(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a fork ended: its exit code, or minus the signal that killed it, and what it wrote."""

    code: int
    output: str


class Forks:
    """Forks of one process that has imported `modules`; these must start no threads when they are imported."""

    def __init__(self, *modules: str) -> None:
        command = [sys.executable, "-c", _PARENT, *modules]
        self._parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.kill()
        self._parent.communicate()

    def run(
        self, code: str, output: Path, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> Ended:
        """Run `code` to its end. `output`: the file that its standard output and errors are written to."""
        order = {
            "code": code,
            "output": str(output),
            "argv": ["forked", *arguments],
            "environment": dict(os.environ if environment is None else environment),
        }
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        code_line = self._parent.stdout.readline()
        assert code_line, "the process that forks has ended"
        return Ended(int(code_line), output.read_text())


def end_with_the_starter() -> None:
    """In a process of a `forkserver`: it ends when the one that asked for it ends, so a killed pytest leaves none.

    The kernel's signal at a parent's death would not come: the parent is the fork server, which lives for as long as
    one of its children.
    """
    starter = multiprocessing.parent_process()
    assert starter is not None

    def wait_and_end() -> None:
        starter.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_and_end, daemon=True).start()
