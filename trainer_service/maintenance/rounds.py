"""The loop and the log lines that all rounds of maintenance share."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Mapping

FIRST_SECONDS = 60.0
"""Mean time to the first round. It comes soon, so that a trainer that restarts often cleans up, too."""


async def run_rounds(one_round: Callable[[], Awaitable[None]], period_seconds: float, stopped: threading.Event) -> None:
    """Runs rounds, each after a pause with jitter, until cancelled; then sets `stopped`, so that a running round ends.

    `period_seconds` is the mean time between two rounds; 0 means no rounds. `one_round` must not raise.
    """
    if not period_seconds:
        return
    pause_seconds = min(period_seconds, FIRST_SECONDS)
    try:
        while True:
            await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.5))
            await one_round()
            pause_seconds = period_seconds
    finally:
        stopped.set()


def log_failures(log: logging.Logger, message: str, failures: Mapping[str, str]) -> None:
    """Writes one warning for each failed step of a round; `failures` maps steps to reasons."""
    for step, reason in failures.items():
        log.warning(message, extra={"fields": {"step": step, "why": reason}})
