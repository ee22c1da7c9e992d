"""Text from the shell: arguments and standard input, in the encoding of the environment."""

from __future__ import annotations

import os
import sys

from shared.text.blank import is_unicode
from softprompt.cli.failures import EXIT_INVALID, Failure


def readable_argument(argument: str) -> str:
    """The argument as UTF-8 if the locale can't decode it (LC_ALL=C). Unchanged if it can't be, or names a file."""
    if is_unicode(argument) or os.path.exists(argument):
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeDecodeError:
        return argument


def read_input(argument: str) -> str:
    """The argument, or for `-` standard input without its last line end. Raises Failure for bytes that are not text."""
    if argument != "-":
        if not is_unicode(argument):
            raise Failure("the input is not text in this shell's encoding", EXIT_INVALID, "LC_ALL sets the encoding")
        return argument
    try:
        text = sys.stdin.read()
        text.encode()
    except UnicodeError:
        reason = f"standard input is not text in {sys.stdin.encoding}"
        raise Failure(reason, EXIT_INVALID, "set its encoding, for example PYTHONIOENCODING=cp1252") from None
    return text.removeprefix("\ufeff").rstrip("\n")
