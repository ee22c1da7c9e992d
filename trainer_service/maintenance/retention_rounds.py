"""Runs rounds of `maintenance.retention` with jitter while the trainer runs. Trainers need no coordination."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Protocol

from shared.caller import Tenant
from shared.process.daemon_thread import on_daemon_thread
from trainer_service.maintenance.retention import Retention, RetentionReport
from trainer_service.maintenance.rounds import log_failures, run_rounds

log = logging.getLogger(__name__)

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
        """Runs rounds until cancelled, despite failures. A running round then ends after its transaction."""
        await run_rounds(self._round, self._period_seconds, self._stopped)

    async def _round(self) -> None:
        begun = time.monotonic()
        try:
            report = await on_daemon_thread(
                partial(self._retention.round, self._tenants(), lambda: self._stopped.wait(_PAUSE_SECONDS)), "retention"
            )
        except Exception:
            log.exception("a retention round failed with an unexpected error")
            report = RetentionReport(failures={"round": "unexpected error"})
        log_failures(log, "a retention step failed; retrying in the next round", report.failures)
        seconds = time.monotonic() - begun
        if report.did_something:
            log.info("retention removed old data", extra={"fields": {**asdict(report), "seconds": round(seconds, 3)}})
        self._observer.retained(report, seconds)
