"""Runs rounds of `shared.store.maintenance` with jitter while the trainer runs. Trainers need no coordination."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import asdict
from typing import Protocol

from shared.errors import Unavailable
from shared.process.call_pool import CallPool
from shared.store import PromptStore
from shared.store.maintenance import MaintenancePolicy, MaintenanceReport, maintain
from trainer_service.maintenance.rounds import log_failures, run_rounds

log = logging.getLogger(__name__)

_LEAST_ROUND_SECONDS = 600.0
"""Time limit of a round if the period is shorter."""


class MaintenanceObserver(Protocol):
    """Called on the event loop."""

    def maintained(self, report: MaintenanceReport, seconds: float) -> None:
        """A round has ended."""


class StoreMaintenance:
    """Runs rounds until `run` is cancelled. `period_seconds` is the mean time between two rounds; 0: none here."""

    def __init__(
        self, store: PromptStore, policy: MaintenancePolicy, period_seconds: float, observer: MaintenanceObserver
    ) -> None:
        self._store, self._policy, self._period_seconds, self._observer = store, policy, period_seconds, observer
        self._stopped = threading.Event()
        self._pool = CallPool(
            "prompt_store_maintenance", max_threads=1, timeout_seconds=max(period_seconds, _LEAST_ROUND_SECONDS)
        )

    async def run(self) -> None:
        """Runs rounds until cancelled, despite failures. A running round then ends after its operation."""
        await run_rounds(self._round, self._period_seconds, self._stopped)

    async def _round(self) -> None:
        begun = time.monotonic()
        try:
            report = await self._pool.call(maintain, self._store, self._policy, self._stopped.is_set)
        except Unavailable:
            report = MaintenanceReport(failures={"round": "the prompt store did not answer in time"})
        except Exception:
            log.exception("a round of store maintenance failed with an unexpected error")
            report = MaintenanceReport(failures={"round": "unexpected error"})
        log_failures(log, "a store maintenance step failed; retrying in the next round", report.failures)
        seconds = time.monotonic() - begun
        if report.did_something:
            log.info("prompt store cleaned up", extra={"fields": {**asdict(report), "seconds": round(seconds, 3)}})
        self._observer.maintained(report, seconds)
