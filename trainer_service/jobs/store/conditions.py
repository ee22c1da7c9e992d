"""Conditions on the states of jobs, for queries."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, literal

from trainer_service.database.schema import jobs
from trainer_service.jobs.states import LEASED_STATES, UNSUCCESSFUL_STATES, JobState


def _any_of(states: Iterable[JobState]) -> ColumnElement[bool]:
    """Jobs in one of these states. Each state is a parameter, because SQLAlchemy rewrites a list at each execution."""
    return jobs.c.state.in_([literal(state.value) for state in sorted(states)])


QUEUED = jobs.c.state == JobState.QUEUED.value
LEASED, UNSUCCESSFUL = _any_of(LEASED_STATES), _any_of(UNSUCCESSFUL_STATES)
UNENDED = _any_of(state for state in JobState if not state.is_final)
"""Names the states of unended jobs, so that index ranges skip the ended jobs, the bulk of an old store."""
