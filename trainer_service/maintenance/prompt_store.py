"""Runs rounds of `shared.store.maintenance` while the trainer runs."""

from __future__ import annotations

from collections.abc import Callable

from shared.errors import Unavailable
from shared.process.call_pool import CallPool
from shared.store import PromptStore
from shared.store.maintenance import MaintenancePolicy, MaintenanceReport, maintain
from trainer_service.maintenance.rounds import Rounds

_LEAST_ROUND_SECONDS = 600.0
"""Time limit of a round if the period is shorter."""


class StoreMaintenance(Rounds[MaintenanceReport]):
    """Rounds that clean up the prompt store."""

    kind = "store maintenance"

    def __init__(
        self,
        store: PromptStore,
        policy: MaintenancePolicy,
        period_seconds: float,
        observe: Callable[[MaintenanceReport, float], None],
    ) -> None:
        super().__init__(MaintenanceReport, period_seconds, observe)
        self._store, self._policy = store, policy
        self._pool = CallPool(
            "prompt_store_maintenance", max_threads=1, timeout_seconds=max(period_seconds, _LEAST_ROUND_SECONDS)
        )

    async def _round(self) -> MaintenanceReport:
        try:
            return await self._pool.call(maintain, self._store, self._policy, self._stopped.is_set)
        except Unavailable:
            return MaintenanceReport(failures={"round": "the prompt store did not answer in time"})
