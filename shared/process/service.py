"""Life cycle of a service process: settings, logging, signals, readiness file, exit code."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from shared import log as logs
from shared.config import ConfigError, ListenerSettings, describe_settings, load_settings
from shared.errors import InvalidInput, SoftPromptError
from shared.process.allocator import tune_allocator
from shared.process.standard_streams import ERROR_MARK

log = logging.getLogger(__name__)

ServiceSettings = TypeVar("ServiceSettings", bound=ListenerSettings)

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h


def run_service(
    settings_class: type[ServiceSettings],
    serve: Callable[[ServiceSettings, asyncio.Event], Awaitable[None]],
    about: str,
) -> int:
    """Run `serve(settings, stop)` until it returns, and return the exit code.

    SIGTERM and SIGINT set `stop`; a second signal ends the process at once. Exit codes: 0 after a drain, 78 for bad
    settings, 1 for an error.
    """
    program = f"python -m {settings_class.__module__.rpartition('.')[0]}"
    parser = argparse.ArgumentParser(program, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = "Settings come from the environment:\n\n" + describe_settings(settings_class)
    parser.parse_args()
    return run_configured(settings_class, serve)


def run_configured(
    settings_class: type[ServiceSettings], serve: Callable[[ServiceSettings, asyncio.Event], Awaitable[None]]
) -> int:
    """`run_service` without the arguments of a command line."""
    try:
        settings = load_settings(settings_class)
    except ConfigError as error:
        sys.stderr.write(f"{ERROR_MARK}{error}\n")
        return EXIT_CONFIG
    # gRPC's log lines ignore our format, and any client can cause them.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logs.configure(settings.log_format, settings.log_level)
    tune_allocator()
    gc.freeze()  # modules live as long as the process: the collector need not look through them again and again
    try:
        asyncio.run(_until_stopped(settings, serve))
    except Exception as error:
        return _report(_cause(error), settings)
    return 0


def _cause(error: Exception) -> Exception:
    """The error to report for a group of tasks: the first ConfigError if there is one, else the first error."""
    if not isinstance(error, ExceptionGroup):
        return error
    causes = [_cause(cause) for cause in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, ConfigError)), causes[0])


def _report(error: Exception, settings: ListenerSettings) -> int:
    """Report the error that ended the service, unexpected ones with a traceback, and return the exit code."""
    if isinstance(error, ConfigError | SoftPromptError | OSError):
        log.debug("the service ends because of an error", exc_info=error)
        sentence = (
            f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        )
        if settings.log_format == "json" and not isinstance(error, ConfigError):
            log.error(sentence)
        else:
            sys.stderr.write(f"{ERROR_MARK}{sentence}\n")
        return EXIT_CONFIG if isinstance(error, ConfigError | InvalidInput) else 1
    log.error("the service ends because of an unexpected error", exc_info=error)
    return 1


async def _until_stopped(
    settings: ServiceSettings, serve: Callable[[ServiceSettings, asyncio.Event], Awaitable[None]]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            log.warning("second signal: ending at once")
            os._exit(128 + number)
        log.info("draining", extra={"fields": {"signal": number.name, "grace_seconds": settings.grace_seconds}})
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await serve(settings, stop)


def announce(settings: ListenerSettings, port: int, metrics_port: int, health_port: int | None = None) -> None:
    """Log the ports that the service listens on and, if configured, write the readiness file atomically."""
    ports = {"port": port, "metrics_port": metrics_port} | ({} if health_port is None else {"health_port": health_port})
    log.info("serving", extra={"fields": {"host": settings.host, "tls": not settings.is_plaintext, **ports}})
    if settings.ready_file:
        target = Path(settings.ready_file)
        temporary = target.with_name(f"{target.name}.{os.getpid()}")
        temporary.write_text(json.dumps({**ports, "pid": os.getpid()}), encoding="utf-8")
        temporary.replace(target)


def retract(settings: ListenerSettings) -> None:
    """Delete the readiness file: at start, since a killed process may have left it, and when draining begins."""
    if settings.ready_file:
        Path(settings.ready_file).unlink(missing_ok=True)
