"""Conditions on the states of jobs, for queries."""

from __future__ import annotations

from trainer_service.database.schema import jobs
from trainer_service.jobs.states import JobState

QUEUED = jobs.c.state == JobState.QUEUED.value
UNENDED = [state.value for state in JobState if not state.is_final]
"""The states of unended jobs. Queries name them, so that index ranges skip the ended jobs, the bulk of an old store."""
