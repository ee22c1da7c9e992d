"""Standard input, output and error of a process, made safe to use whatever the shell did to them: closed, or in an
encoding that lacks characters.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

ERROR_MARK = "error: "
"""Begins the sentence on standard error that says why a program ended."""


def prepare_streams() -> None:
    """Call it first, before a file or a socket can take the number of a closed stream.

    A closed stream becomes the null device. A character that a stream's encoding lacks is written as its escape
    (`\\u20ac`).
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest free number, which is this one
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 - as long as the process
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test's replacement has no encoding of its own
            stream.reconfigure(errors="backslashreplace")


def is_utf8(stream: Any) -> bool:
    """Whether the stream can take every character as it is."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return bool(encoding.lower().replace("-", "").replace("_", "") == "utf8")


def discard_stdout() -> None:
    """Drop what is still buffered for standard output, after a write has failed: at its end Python would try again, and
    complain.
    """
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
