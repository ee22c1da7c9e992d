"""Adds a note to waiting jobs, once each, that says why their worker has not started."""

from __future__ import annotations

from trainer_service.jobs.context import JobsContext

_MOST = 20
"""Jobs that get a note after one failed launch, those that wait longest."""


class WaitingNotes:
    """Remembers which waiting jobs already have a note."""

    def __init__(self, context: JobsContext) -> None:
        self._context = context
        self._noted: dict[str, set[str]] = {}
        """Ids of jobs with a note, by base model."""

    async def add(self, base_model: str, reason: str) -> None:
        """Adds a note with the reason to the jobs that wait for the base model and have none yet."""
        context, noted = self._context, self._noted.setdefault(base_model, set())
        for job_id in await context.database.retry(context.store.waiting, base_model, _MOST):
            if job_id not in noted:
                noted.add(job_id)
                await context.note(job_id, f"waiting: {reason[:400]}; the trainer tries again")

    def forget(self, base_model: str) -> None:
        """Lets the base model's jobs get another note; to be called after a successful launch."""
        self._noted.pop(base_model, None)
