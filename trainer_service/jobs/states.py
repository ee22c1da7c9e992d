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

_REQUESTS: Mapping[JobState, str] = {
    JobState.QUEUED: "be resumed",
    JobState.PAUSED: "be paused",
    JobState.CANCELLING: "be cancelled",
    JobState.CANCELLED: "be cancelled",
}
"""What a request wants, by the state that it leads to."""
_ADVICE: Mapping[JobState, str] = {
    JobState.QUEUED: "you can pause or cancel it",
    JobState.RUNNING: "you can pause or cancel it",
    JobState.PAUSED: "you can resume or cancel it",
    JobState.CANCELLING: "it ends after its current step",
    **dict.fromkeys(TERMINAL_STATES, "it has ended; you can delete it, or create a new job"),
}


def check_move(job_id: str, current: JobState, target: JobState) -> None:
    """Raises PreconditionFailed, with the current state, unless the table allows the transition."""
    if target not in LEGAL_MOVES[current]:
        raise refusal(job_id, current, target)


def refusal(job_id: str, current: JobState, target: JobState) -> PreconditionFailed:
    """The error for a request that a job in state `current` can't follow. It says what can be done instead."""
    return PreconditionFailed(
        f"job {job_id!r} is {current} and can't {_REQUESTS.get(target, f'become {target}')}: {_ADVICE[current]}",
        job=job_id,
        state=current.value,
        requested=target.value,
    )
