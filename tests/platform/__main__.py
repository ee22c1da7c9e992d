"""Runs every command of docs/platform.md in order, in one shell and an empty directory, and ends what it started."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.code_blocks import ROOT, code_blocks

PAGE = "docs/platform.md"
_BEGIN = "set -euo pipefail\nset -m\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n"


def script() -> str:
    """The commands of the page. Each section is announced; a command that fails ends the walk."""
    blocks = [block.commands for block in code_blocks(PAGE) if block.commands]
    return _BEGIN + "\n".join(f"echo '== {number}'\n{commands}" for number, commands in enumerate(blocks, start=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, help="where to run it, empty [a temporary one]")
    chosen = parser.parse_args()
    with TemporaryDirectory(prefix="platform-") as temporary:
        directory = (chosen.directory or Path(temporary)).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SOFTPROMPT_")}
        environment["CHECKOUT"] = str(ROOT)
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # the page's commands are ours
        with subprocess.Popen(["bash", "-c", script()], cwd=directory, env=environment, start_new_session=True) as walk:
            try:
                return walk.wait()
            except KeyboardInterrupt:
                os.kill(walk.pid, signal.SIGTERM)
                return walk.wait()


if __name__ == "__main__":
    sys.exit(main())
