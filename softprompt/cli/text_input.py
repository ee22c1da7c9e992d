"""Text from the shell: arguments and standard input, in whatever encoding the environment names."""

from __future__ import annotations

import os
import sys

from softprompt.cli.failures import EXIT_INVALID, Failure


def readable_argument(argument: str) -> str:
    """The argument as UTF-8 where the locale could not read it, as with LC_ALL=C; unchanged if it is no UTF-8 or names an existing file."""
    if _is_text(argument) or os.path.exists(argument):
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeDecodeError:
        return argument


def read_input(argument: str) -> str:
    """The argument, or standard input without its last line end where the argument is `-`. Raises Failure for bytes that are no text."""
    if argument != "-":
        if not _is_text(argument):
            raise Failure("the input is not text in the encoding of this shell", EXIT_INVALID, "LC_ALL names the encoding")
        return argument
    try:
        text = sys.stdin.read()
        text.encode()
    except UnicodeError:
        reason = f"standard input is not text in {sys.stdin.encoding}"
        raise Failure(reason, EXIT_INVALID, "PYTHONIOENCODING names its encoding, as in PYTHONIOENCODING=cp1252") from None
    return text.removeprefix("\ufeff").rstrip("\n")


def _is_text(text: str) -> bool:
    """Whether it has no surrogates, as which Python keeps bytes that it could not decode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
