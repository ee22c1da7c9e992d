"""Runs the maintenance of the prompt store, and retention, while the trainer runs."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Generic, TypeVar

from shared.caller import Tenant
from shared.errors import Unavailable
from shared.process.call_pool import CallPool
from shared.process.daemon_thread import on_daemon_thread
from shared.store import PromptStore
from shared.store.maintenance import MaintenancePolicy, MaintenanceReport, maintain
from trainer_service.maintenance.retention import Retention, RetentionReport

log = logging.getLogger(__name__)

R = TypeVar("R", MaintenanceReport, RetentionReport)
FIRST_SECONDS = 60.0
"""Mean time to the first round. It comes soon, so that a trainer that restarts often cleans up, too."""
_LEAST_ROUND_SECONDS = 600.0
"""Time limit of a round of the prompt store if the period is shorter."""
_PAUSE_SECONDS = 0.005
"""Pause between two transactions of retention, so that requests of callers go first."""


class Rounds(Generic[R]):
    """Runs rounds with jitter until `run` is cancelled. Trainers need no coordination."""

    def __init__(
        self,
        kind: str,
        report: type[R],
        one_round: Callable[[threading.Event], Awaitable[R]],
        period_seconds: float,
        observe: Callable[[R, float], None],
    ) -> None:
        """`kind` is for log lines. `one_round(stopped)` runs a round in a thread; `stopped` is set when `run` is
        cancelled, so that the round ends after its current operation. `period_seconds`: mean time between two rounds;
        0: none here. `observe` is called with the report of each round and its seconds, on the event loop.
        """
        self._kind, self._period_seconds = kind, period_seconds
        self._one_round: Callable[[threading.Event], Awaitable[R]] = one_round
        self._report: type[R] = report
        self._observe: Callable[[R, float], None] = observe
        self._stopped = threading.Event()

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

    async def _observed_round(self) -> None:
        begun = time.monotonic()
        try:
            report = await self._one_round(self._stopped)
        except Exception:
            log.exception("a %s round failed with an unexpected error", self._kind)
            report = self._report(failures={"round": "unexpected error"})
        for step, reason in report.failures.items():
            fields = {"step": step, "why": reason}
            log.warning("a %s step failed; retrying in the next round", self._kind, extra={"fields": fields})
        seconds = time.monotonic() - begun
        if report.did_something:
            removed = {**asdict(report), "seconds": round(seconds, 3)}
            log.info("%s removed old data", self._kind, extra={"fields": removed})
        self._observe(report, seconds)


def store_rounds(
    store: PromptStore,
    policy: MaintenancePolicy,
    period_seconds: float,
    observe: Callable[[MaintenanceReport, float], None],
) -> Rounds[MaintenanceReport]:
    """Rounds that clean up the prompt store."""
    limit_seconds = max(period_seconds, _LEAST_ROUND_SECONDS)
    pool = CallPool("prompt_store_maintenance", max_threads=1, timeout_seconds=limit_seconds)

    async def one_round(stopped: threading.Event) -> MaintenanceReport:
        try:
            return await pool.call(maintain, store, policy, stopped.is_set)
        except Unavailable:
            return MaintenanceReport(failures={"round": "the prompt store did not answer in time"})

    return Rounds("store maintenance", MaintenanceReport, one_round, period_seconds, observe)


def retention_rounds(
    retention: Retention,
    tenants: Callable[[], Mapping[str, Tenant]],
    period_seconds: float,
    observe: Callable[[RetentionReport, float], None],
) -> Rounds[RetentionReport]:
    """Rounds that remove old jobs, datasets and events."""

    async def one_round(stopped: threading.Event) -> RetentionReport:
        work = partial(retention.round, tenants(), lambda: stopped.wait(_PAUSE_SECONDS))
        return await on_daemon_thread(work, "retention")

    return Rounds("retention", RetentionReport, one_round, period_seconds, observe)
