"""Finds the chunk that makes a step fail: computes each chunk again alone; those that raise again fail.

Knows the plan and no tensors. The effects of a step on the cache can be repeated, except copies from places that the
same step may have overwritten. Chunks with such copies are postponed to a later step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from inference_service.engine.core.plan import Chunk, StepPlan
from inference_service.engine.kv.rows import Trim

T = TypeVar("T")


class StepFailed(RuntimeError):
    """A defect of the engine, not of the request. The log has the cause; callers see an internal error."""


@dataclass
class Isolated(Generic[T]):
    """The outcome of each chunk of a failed step."""

    computed: list[tuple[StepPlan, T]] = field(default_factory=list)
    """Plans of one chunk each, with their results."""
    failed: list[tuple[Chunk, Exception]] = field(default_factory=list)
    postponed: list[Chunk] = field(default_factory=list)
    """Chunks that can't be repeated now; their sequences must be preempted."""


def compute_each_alone(plan: StepPlan, compute: Callable[[StepPlan], T]) -> Isolated[T]:
    """Compute every chunk of the plan in its own step. Exceptions of `compute` become entries in `failed`."""
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
    """Whether the op sets a whole block table.

    Two of them for one row mean that its first holder of this step was preempted, and others may have its blocks.
    """
    return getattr(op, "first", None) == 0
