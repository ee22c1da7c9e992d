"""Commands that run something on this machine need more than the light install; they say so before they begin."""

from __future__ import annotations

import sys

from softprompt.cli.failures import EXIT_INVALID, Failure
from softprompt.extras import advice, missing_packages


def require(*extras: str) -> None:
    """Raises Failure with the command that installs what these extras have and this environment lacks.

    The advice is always `all`: a user of one of these commands needs the others next.
    """
    if sys.platform == "win32":
        raise Failure("the services and models run on Linux and macOS; on Windows, use WSL 2", EXIT_INVALID)
    if missing := missing_packages(*extras):
        raise Failure(advice(missing, "all"), EXIT_INVALID)
