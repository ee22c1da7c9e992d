"""Runs rounds of `trainer_service.maintenance.retention` while the trainer runs, with jitter. Trainers don't have to
know of each other.
"""

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
"""Between two transactions of a round: what callers ask for goes first."""


class RetentionObserver(Protocol):
    """Called on the event loop."""

    def retained(self, report: RetentionReport, seconds: float) -> None:
        """A round has ended."""


class RetentionRounds:
    """`run` until cancelled. `period_seconds` is the mean time between two rounds; 0: none here."""

    def __init__(
        self,
        retention: Retention,
        tenants: Callable[[], Mapping[str, Tenant]],
        period_seconds: float,
        observer: RetentionObserver,
    ) -> None:
        self._retention, self._tenants, self._period_seconds, self._observer = (
            retention,
            tenants,
            period_seconds,
            observer,
        )
        self._stopped = threading.Event()

    async def run(self) -> None:
        """The first round comes soon, so that a trainer that is restarted often cleans up, too. Nothing that fails in a
        round ends this.
        """
        if not self._period_seconds:
            return
        pause_seconds = min(self._period_seconds, _FIRST_SECONDS)
        try:
            while True:
                await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.5))
                await self._round()
                pause_seconds = self._period_seconds
        finally:
            self._stopped.set()  # a round that is under way ends with its current transaction

    async def _round(self) -> None:
        begun = time.monotonic()
        try:
            report = await on_daemon_thread(
                partial(self._retention.round, self._tenants(), lambda: self._stopped.wait(_PAUSE_SECONDS)), "retention"
            )
        except Exception:
            log.exception("a round of retention failed unexpectedly")
            report = RetentionReport(failures={"round": "unexpected error"})
        for step, reason in report.failures.items():
            log.warning(
                "retention could not do a step; the next round tries again",
                extra={"fields": {"step": step, "why": reason}},
            )
        seconds = time.monotonic() - begun
        if report.did_something:
            log.info(
                "retention removed what is old", extra={"fields": {**asdict(report), "seconds": round(seconds, 3)}}
            )
        self._observer.retained(report, seconds)
