"""Runs rounds of `maintenance.retention` while the trainer runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from shared.caller import Tenant
from shared.process.daemon_thread import on_daemon_thread
from trainer_service.maintenance.retention import Retention, RetentionReport
from trainer_service.maintenance.rounds import Rounds

_PAUSE_SECONDS = 0.005
"""Pause between two transactions of a round, so that requests of callers go first."""


class RetentionRounds(Rounds[RetentionReport]):
    """Rounds that remove old jobs, datasets and events."""

    kind = "retention"

    def __init__(
        self,
        retention: Retention,
        tenants: Callable[[], Mapping[str, Tenant]],
        period_seconds: float,
        observe: Callable[[RetentionReport, float], None],
    ) -> None:
        super().__init__(RetentionReport, period_seconds, observe)
        self._retention, self._tenants = retention, tenants

    async def _round(self) -> RetentionReport:
        one = partial(self._retention.round, self._tenants(), lambda: self._stopped.wait(_PAUSE_SECONDS))
        return await on_daemon_thread(one, "retention")
