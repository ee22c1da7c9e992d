"""Runs rounds of `maintenance.retention` with jitter while the trainer runs. Trainers need no coordination."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Protocol

from shared.caller import Tenant
from shared.process.daemon_thread import on_daemon_thread
from trainer_service.maintenance.retention import Retention, RetentionReport

log = logging.getLogger(__name__)

_FIRST_SECONDS = 60.0
_PAUSE_SECONDS = 0.005
"""Pause between two transactions of a round, so that requests of callers go first."""


class RetentionObserver(Protocol):
    """Called on the event loop."""

    def retained(self, report: RetentionReport, seconds: float) -> None:
        """A round has ended."""


class RetentionRounds:
    """Runs rounds until `run` is cancelled. `period_seconds` is the mean time between two rounds; 0: none here."""

    def __init__(
        self,
        retention: Retention,
        tenants: Callable[[], Mapping[str, Tenant]],
        period_seconds: float,
        observer: RetentionObserver,
    ) -> None:
        self._retention, self._tenants = retention, tenants
        self._period_seconds, self._observer = period_seconds, observer
        self._stopped = threading.Event()

    async def run(self) -> None:
        """Runs rounds; failures don't end it. The first one comes soon, so a trainer that restarts often cleans up."""
        if not self._period_seconds:
            return
        pause_seconds = min(self._period_seconds, _FIRST_SECONDS)
        try:
            while True:
                await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.5))
                await self._round()
                pause_seconds = self._period_seconds
        finally:
            self._stopped.set()  # a running round ends after its current transaction

    async def _round(self) -> None:
        begun = time.monotonic()
        try:
            report = await on_daemon_thread(
                partial(self._retention.round, self._tenants(), lambda: self._stopped.wait(_PAUSE_SECONDS)), "retention"
            )
        except Exception:
            log.exception("a retention round failed with an unexpected error")
            report = RetentionReport(failures={"round": "unexpected error"})
        for step, reason in report.failures.items():
            log.warning(
                "a retention step failed; retrying in the next round",
                extra={"fields": {"step": step, "why": reason}},
            )
        seconds = time.monotonic() - begun
        if report.did_something:
            log.info("retention removed old data", extra={"fields": {**asdict(report), "seconds": round(seconds, 3)}})
        self._observer.retained(report, seconds)
