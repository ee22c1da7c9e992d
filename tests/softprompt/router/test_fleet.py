"""The processes of the router's tests end with the tests, however these end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
PROGRAM = """
import asyncio, sys
from pathlib import Path
from tests.softprompt.router.fleet import fleet

async def main():
    with fleet(Path(sys.argv[1]), imported=()) as made:
        ready = asyncio.create_task(made.router())  # never: it finds no replica
        while not made.processes:
            await asyncio.sleep(0)
        print(made.processes[0].pid, flush=True)
        await ready

if __name__ == "__main__":
    asyncio.run(main())
"""


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def test_a_killed_pytest_leaves_no_process_behind(tmp_path: Path) -> None:
    script = tmp_path / "starts_a_fleet.py"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as running:
        started: list[psutil.Process] = []
        try:
            assert running.stdout is not None
            started = [psutil.Process(int(running.stdout.readline()))]
            started += psutil.Process(running.pid).children(recursive=True)
            running.kill()
            wait_until(lambda: all(map(has_ended, started)))
        finally:
            running.kill()
            for process in started:
                if not has_ended(process):
                    process.kill()
