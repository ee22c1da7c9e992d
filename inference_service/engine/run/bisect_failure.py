"""When a step raises, who is to blame? Each of its chunks is computed again alone; whoever raises then fails alone.

Knows the plan and nothing of tensors. What a step does to the cache can be done twice, except copies out of places that
the same step may have overwritten since: their chunks are postponed, which loses nothing but time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from inference_service.engine.core.plan import Chunk, StepPlan
from inference_service.engine.kv.rows import Trim

T = TypeVar("T")


class StepFailed(RuntimeError):
    """The engine, not the request, is to blame; the log has the cause. Callers see it as an internal error."""


@dataclass
class Isolated(Generic[T]):
    computed: list[tuple[StepPlan, T]] = field(default_factory=list)
    """Plans of one chunk each, with their results."""
    failed: list[tuple[Chunk, Exception]] = field(default_factory=list)
    postponed: list[Chunk] = field(default_factory=list)


def compute_each_alone(plan: StepPlan, compute: Callable[[StepPlan], T]) -> Isolated[T]:
    """Every chunk in a step of its own. Raises nothing that `compute` raises for a chunk."""
    rows = {chunk.row for chunk in plan.chunks}
    orphans = tuple(op for op in plan.ops if isinstance(op, Trim) and op.row not in rows)
    found = Isolated[T]()
    for chunk in plan.chunks:
        own = tuple(op for op in plan.ops if op.row == chunk.row)
        if any(_reads_elsewhere(op) for op in own) or sum(_starts_a_table(op) for op in own) > 1:
            found.postponed.append(chunk)
            continue
        alone = StepPlan((chunk,), (*orphans, *own))
        try:
            found.computed.append((alone, compute(alone)))
        except Exception as error:
            found.failed.append((chunk, error))
        else:
            orphans = ()
    return found


def _reads_elsewhere(op: object) -> bool:
    return getattr(op, "source", None) is not None


def _starts_a_table(op: object) -> bool:
    """Two of them mean that the row's first holder of this step had to go, and others may have its blocks."""
    return getattr(op, "first", None) == 0
