"""Runs the command line in a process whose standard error, and standard output unless it is a pipe, are a real
terminal.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


def run_on_terminal(columns: int, *arguments: str, pipe_stdout: bool = False) -> tuple[int, str, str]:
    """(exit code, what the terminal was sent without control sequences, what the pipe was sent)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "softprompt.cli", *arguments]
    stdout = subprocess.PIPE if pipe_stdout else theirs
    with subprocess.Popen(command, stdin=theirs, stdout=stdout, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # Linux: the other end is closed
                break
            if not piece:
                break
            shown += piece
        piped = process.stdout.read() if process.stdout else b""
    os.close(ours)
    return process.returncode, _CONTROL.sub("", shown.decode()), piped.decode()
