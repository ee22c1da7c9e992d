"""The states of a tuning job and every legal transition between them, in one table."""

from __future__ import annotations

from collections.abc import Mapping

from shared.errors import PreconditionFailed
from shared.values.enums import JobState as JobState

LEGAL_MOVES: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED}),
    # Back to QUEUED when the worker is lost or the service drains.
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.PAUSED, JobState.CANCELLING, JobState.SUCCEEDED, JobState.FAILED}
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    # SUCCEEDED: its version was already published before the cancellation. FAILED: an error came first.
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

TERMINAL_STATES = frozenset(state for state, moves in LEGAL_MOVES.items() if not moves)
UNSUCCESSFUL_STATES = TERMINAL_STATES - {JobState.SUCCEEDED}
LEASED_STATES = frozenset({JobState.RUNNING, JobState.CANCELLING})
"""A job in one of these belongs to the trainer replica that claimed it."""


def check_move(job_id: str, current: JobState, target: JobState) -> None:
    """Raises PreconditionFailed, with the current state, unless the table allows the transition."""
    if target not in LEGAL_MOVES[current]:
        raise PreconditionFailed(
            f"job {job_id!r} is {current} and can't become {target}",
            job=job_id,
            state=current.value,
            requested=target.value,
        )
