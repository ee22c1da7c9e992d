"""What all rounds of maintenance share: their loop, their log lines and their reports."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from typing import ClassVar, Generic, TypeVar

from shared.store.maintenance import MaintenanceReport
from trainer_service.maintenance.retention import RetentionReport

log = logging.getLogger(__name__)

R = TypeVar("R", MaintenanceReport, RetentionReport)
FIRST_SECONDS = 60.0
"""Mean time to the first round. It comes soon, so that a trainer that restarts often cleans up, too."""


class Rounds(ABC, Generic[R]):
    """Runs rounds with jitter until `run` is cancelled. Trainers need no coordination.

    `period_seconds` is the mean time between two rounds; 0: none here. `observe` is called with the report of each
    round and its seconds, on the event loop.
    """

    kind: ClassVar[str]
    """Of the rounds, for log lines."""

    def __init__(self, report: type[R], period_seconds: float, observe: Callable[[R, float], None]) -> None:
        self._report: type[R] = report
        self._observe: Callable[[R, float], None] = observe
        self._period_seconds = period_seconds
        self._stopped = threading.Event()
        """Set when `run` is cancelled, so that a running round ends after its operation."""

    async def run(self) -> None:
        """Runs rounds, each after a pause, despite failures."""
        if not self._period_seconds:
            return
        pause_seconds = min(self._period_seconds, FIRST_SECONDS)
        try:
            while True:
                await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.5))
                await self._observed_round()
                pause_seconds = self._period_seconds
        finally:
            self._stopped.set()

    @abstractmethod
    async def _round(self) -> R:
        """Runs one round in a thread."""

    async def _observed_round(self) -> None:
        begun = time.monotonic()
        try:
            report = await self._round()
        except Exception:
            log.exception("a %s round failed with an unexpected error", self.kind)
            report = self._report(failures={"round": "unexpected error"})
        for step, reason in report.failures.items():
            fields = {"step": step, "why": reason}
            log.warning("a %s step failed; retrying in the next round", self.kind, extra={"fields": fields})
        seconds = time.monotonic() - begun
        if report.did_something:
            log.info(
                "%s removed old data", self.kind, extra={"fields": {**asdict(report), "seconds": round(seconds, 3)}}
            )
        self._observe(report, seconds)
