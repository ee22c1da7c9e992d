"""What ends a command: a message, an exit code and a hint. `error_report` prints it."""

from __future__ import annotations

import sys

from softprompt.extras import advice, missing_packages

EXIT_FAILED, EXIT_INVALID, EXIT_NOT_FOUND, EXIT_REFUSED, EXIT_AWAY, EXIT_INTERRUPTED = 1, 2, 3, 4, 5, 130
EXIT_CODES_HELP = (
    "Exit codes: 0 success; 1 failure, also of a job; 2 wrong usage or invalid input; 3 not found; 4 refused;"
    " 5 the service is unreachable, overloaded or too slow: try again; 130 interrupted."
)


class Failure(Exception):
    """Ends a command with a message, an exit code and a hint."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED, hint: str = "") -> None:
        super().__init__(message)
        self.exit_code, self.hint = exit_code, hint


def require(*extras: str) -> None:
    """Raises Failure with the command that installs what these extras have and this environment lacks.

    The advice is always `all`: a user of a command that runs something here needs the others next.
    """
    if sys.platform == "win32":
        raise Failure("the services and models run on Linux and macOS; on Windows, use WSL 2", EXIT_INVALID)
    if missing := missing_packages(*extras):
        raise Failure(advice(missing, "all"), EXIT_INVALID)
