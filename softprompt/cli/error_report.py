"""Errors on the command line: the message, a hint what to do, and the exit code."""

from __future__ import annotations

import contextlib
import math
import sys

import typer
from rich.markup import escape

from shared import errors
from softprompt.cli.data import mending_command
from softprompt.cli.failures import EXIT_AWAY, EXIT_FAILED, EXIT_INVALID, EXIT_NOT_FOUND, EXIT_REFUSED, Failure
from softprompt.cli.output import stderr
from softprompt.data.problems import UnusableData
from softprompt.endpoints import INFERENCE_VARIABLE, TRAINER_VARIABLE


def report(error: Exception) -> int:
    """Print the error and its hint on stderr, if stderr can be written to. Returns the exit code."""
    with contextlib.suppress(OSError):
        stderr().print(f"[bold red]error:[/] {escape(_message(error))}", highlight=False, soft_wrap=True)
        if hint := _meant(error) or _hint(error):
            stderr().print(f"[dim]hint:[/] {escape(hint)}", highlight=False, soft_wrap=True)
    return exit_code(error)


def exit_code(error: Exception) -> int:
    """The exit code for scripts (EXIT_CODES_HELP)."""
    match error:
        case Failure():
            return error.exit_code
        case errors.InvalidInput():
            return EXIT_INVALID
        case errors.NotFound():
            return EXIT_NOT_FOUND
        case errors.PreconditionFailed() | errors.Conflict() | errors.AlreadyExists():
            return EXIT_REFUSED
        case errors.PermissionDenied() | errors.Unauthenticated():
            return EXIT_REFUSED
        case errors.Unavailable() | errors.Overloaded():
            return EXIT_AWAY
        case errors.DeadlineExceeded() | errors.Cancelled() | TimeoutError():
            return EXIT_AWAY
        case _:
            return EXIT_FAILED


def _message(error: Exception) -> str:
    if isinstance(error, errors.InvalidInput) and len(error.violations) > 1:
        title = "the request has several errors"
        if isinstance(error, UnusableData):
            title = f"{error.source or 'the data'} can't be used as training examples"
        return f"{title}:\n" + "\n".join(f"  {_named(item.field)}: {item.description}" for item in error.violations)
    if isinstance(error, errors.InvalidInput) and (field := error.violations[0].field).startswith("spec."):
        return str(error).replace(field, _named(field), 1)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, errors.SoftPromptError | Failure | OSError | TimeoutError):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} (a bug in this program; SOFTPROMPT_DEBUG=1 shows the traceback)"


def _named(field: str) -> str:
    """The option that sets this field of a job's spec; other fields, and those without an option, as they are."""
    if not field.startswith("spec."):
        return field
    from softprompt.cli.field_options import HYPERPARAMETERS, TEMPLATE
    from softprompt.cli.tune import app

    name = field.rpartition(".")[2]
    known = {**HYPERPARAMETERS, **TEMPLATE}.get(name)
    option = (known.option if known is not None else "") or f"--{name.replace('_', '-')}"
    return option if any(option in one.opts for one in typer.main.get_command(app).params) else field


def _meant(error: Exception) -> str:
    """The name that is probably meant, if one does not exist."""
    if not isinstance(error, errors.NotFound | errors.InvalidInput):
        return ""
    from softprompt.cli.suggestions import suggestion

    return suggestion(error)


def _hint(error: Exception) -> str:
    match error:
        case Failure():
            return error.hint
        case UnusableData():
            command = mending_command(sys.argv[1:], error.fix) if error.fix else ""
            return "; ".join(filter(None, (command, error.advice)))
        case errors.Unavailable() | errors.DeadlineExceeded() if "proxy" in error.metadata:
            return "if calls to this service should not use the proxy, set no_proxy=HOST"
        case errors.Unavailable() if "endpoint" in error.metadata:
            others = f"--trainer and --inference, or {TRAINER_VARIABLE} and {INFERENCE_VARIABLE}, set other addresses"
            return f"is the service running? `softprompt up` starts both services on this machine; {others}"
        case errors.Unauthenticated() | errors.PermissionDenied() if "source" in error.metadata:
            return ""  # of a download, whose message says what to do
        case errors.Unauthenticated():
            token = "SOFTPROMPT_TOKEN or SOFTPROMPT_TOKEN_FILE (--token-file)"
            return f"set {token}, or SOFTPROMPT_TLS_CERTIFICATE_FILE for a certificate"
        case errors.NotFound() if error.kind == "prompt":
            shown = "`softprompt prompts list` (role viewer) shows your prompts"
            return f"a prompt exists once its first version is published; {shown}"
        case errors.PermissionDenied() if error.metadata.get("role") == "publisher":
            ask = "ask the operator for the role publisher in the service's callers file"
            return f"`--alias -` publishes without moving an alias; or {ask}"
        case errors.PermissionDenied():
            return "ask the operator for this role in the service's callers file"
        case errors.Overloaded():
            return f"try again in {_duration(error.retry_after_seconds)}"
        case _:
            return ""


def _duration(seconds: float) -> str:
    """Rounded up: a caller that waits that long is not refused again."""
    if seconds <= 120:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
