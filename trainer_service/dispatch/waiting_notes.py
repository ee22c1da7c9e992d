"""Tells waiting jobs why no worker can be started for them, once each."""

from __future__ import annotations

from trainer_service.jobs.context import JobsContext
from trainer_service.jobs.model import Note

_MOST = 20
"""Jobs told after one failed launch, those that wait longest."""


class WaitingNotes:
    def __init__(self, context: JobsContext) -> None:
        self._context = context
        self._told: dict[str, set[str]] = {}
        """Jobs, by base model."""

    async def tell(self, base_model: str, reason: str) -> None:
        context, told = self._context, self._told.setdefault(base_model, set())
        for job_id in await context.database.retry(context.store.waiting, base_model, _MOST):
            if job_id not in told:
                told.add(job_id)
                note = Note(text=f"waits: a worker was started where it can't be used: {reason[:300]}")
                await context.change(job_id, lambda record: record, payloads=[note])

    def forget(self, base_model: str) -> None:
        """A worker was ready: what is wrong after that is news."""
        self._told.pop(base_model, None)
