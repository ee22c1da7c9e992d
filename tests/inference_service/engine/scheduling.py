"""Requests of the scheduler's tests, and steps that are completed as if a model had computed them."""

from __future__ import annotations

from collections import Counter

from inference_service.engine.core.plan import StepPlan
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.kv.rows import RowPool
from inference_service.engine.scheduler import Scheduler
from shared.values.sampling import SamplingParams


def sequence(
    arrival: int,
    num_input: int,
    *,
    priority: int = 0,
    num_virtual: int = 0,
    candidates: tuple[tuple[int, ...], ...] = (),
) -> RunningRequest:
    return RunningRequest(
        request_id=f"s{arrival}",
        tokens=[1000 * arrival + i for i in range(num_input)],
        num_input=num_input,
        sampling=SamplingParams(),
        seed=0,
        prefix_id="p" if num_virtual else None,
        num_virtual=num_virtual,
        priority=priority,
        arrival=arrival,
        candidates=candidates,
    )


def scheduler(num_rows: int = 4, max_blocks: int = 64, budget: int = 16, max_length: int = 512) -> Scheduler:
    return Scheduler(RowPool(num_rows, max_blocks, max_length), budget)


def complete(subject: Scheduler, plan: StepPlan) -> None:
    subject.complete(plan)
    for chunk in plan.chunks:
        if chunk.samples:
            chunk.sequence.tokens.append(7)
    subject.check_integrity()


def of(tenant: str, arrival: int, num_input: int = 4, *, weight: float = 1.0, **fields: object) -> RunningRequest:
    item = sequence(arrival, num_input, **fields)  # type: ignore[arg-type]
    item.tenant, item.weight = tenant, weight
    return item


def run(subject: Scheduler, steps: int) -> Counter[str]:
    """Positions computed for each tenant."""
    positions = Counter[str]()
    for _ in range(steps):
        plan = subject.schedule(0.0)
        assert plan.num_positions <= subject.max_tokens_per_step
        for chunk in plan.chunks:
            positions[chunk.sequence.tenant] += chunk.num_positions
        complete(subject, plan)
    return positions


def start(subject: Scheduler, *items: RunningRequest) -> None:
    for item in items:
        subject.add(item)
    while any(item.num_generated == 0 for item in items):
        complete(subject, subject.schedule(0.0))
