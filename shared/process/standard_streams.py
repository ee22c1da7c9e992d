"""Makes standard input, output and error safe to use if they are closed or their encoding lacks characters."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

ERROR_MARK = "error: "
"""Prefix of the sentence on standard error that says why a program ended."""


def prepare_streams() -> None:
    r"""Replace closed streams by the null device; write characters that an encoding lacks as escapes (`\u20ac`).

    Call it first, before a file or a socket can take the descriptor of a closed stream.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest free number, which is this one
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 - stays open as long as the process
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # replacements in tests have no encoding
            stream.reconfigure(errors="backslashreplace")


def is_utf8(stream: Any) -> bool:
    """Whether the stream's encoding is UTF-8, which can represent every character."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return bool(encoding.lower().replace("-", "").replace("_", "") == "utf8")


def discard_stdout() -> None:
    """Drop buffered output after a write failed, or Python would write it again at exit and print an error."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
