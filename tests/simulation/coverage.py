"""What many lives should have passed through: each move between states, and each kind of fault in each state."""

from __future__ import annotations

from collections.abc import Collection

from tests.simulation.faults import KINDS
from trainer_service.jobs.states import LEGAL_MOVES

Pair = tuple[str, str]
STATES = ("QUEUED", "RUNNING", "PUBLISHING", "PAUSED", "CANCELLING")
"""States of jobs that faults can disturb; PUBLISHING is a RUNNING job that is trained."""
UNREACHABLE = {
    (
        "CANCELLING",
        "FAILED",
    ): "`transitions.failed` makes a cancelling job CANCELLED; old builds did not",
}


def not_reached(edges: Collection[Pair], meetings: Collection[Pair]) -> list[str]:
    """The moves and pairs that can happen and did not."""
    moves = [(before.value, after.value) for before, targets in LEGAL_MOVES.items() for after in targets]
    pairs = [(kind, state) for kind in KINDS for state in STATES]
    missing = [f"{before} to {after}" for before, after in moves if (before, after) not in {*UNREACHABLE, *edges}]
    return sorted(missing) + [f"{kind} in {state}" for kind, state in pairs if (kind, state) not in meetings]
