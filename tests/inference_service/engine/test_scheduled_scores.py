"""Scores and prefixes in the scheduler: they come in parts, within the step's budget, and take no memory of others."""

from __future__ import annotations

import pytest

from inference_service.engine.core.integrity import IntegrityError
from inference_service.engine.core.request import FinishReason
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.kv.blocks import BlockPool
from inference_service.engine.kv.rows import BLOCK_TOKENS, RowPool
from inference_service.engine.scheduler import MAX_SCORED_POSITIONS, Scheduler
from tests.inference_service.engine.scheduling import complete, run, scheduler, sequence, start


def test_a_long_candidate_comes_in_parts_and_is_scored_whole() -> None:
    subject = scheduler(num_rows=2, max_blocks=300, budget=64, max_length=4096)
    item = sequence(1, 50, candidates=(tuple(range(2400)), (1, 2, 3), tuple(range(1, 1001))))
    subject.add(item)
    fed: list[tuple[int, ...]] = []
    while item.num_scored < 3:
        plan = subject.schedule(0.0)
        assert 0 < plan.num_positions <= 64
        fed += [branch for chunk in plan.chunks for branch in chunk.branches]
        complete(subject, plan)
    assert [token for branch in fed for token in branch] == [
        token for candidate in item.candidates for token in candidate
    ]
    assert item.tokens == item.tokens[:50]


def test_a_preempted_score_goes_on_where_it_was() -> None:
    subject = scheduler(num_rows=1, max_blocks=64, budget=64, max_length=2048)
    item = sequence(1, 50, candidates=(tuple(range(1000)),))
    subject.add(item)
    scored: list[int] = []
    for step in range(100):
        plan = subject.schedule(0.0)
        scored += [token for chunk in plan.chunks for branch in chunk.branches for token in branch]
        complete(subject, plan)
        if step == 5:
            subject.preempt(item)
        if item.num_scored:
            break
    assert scored == list(range(1000))


def test_scores_have_a_bound_on_logits_of_their_own() -> None:
    subject = scheduler(num_rows=4, max_blocks=1000, budget=4096, max_length=8000)
    for arrival in range(3):
        subject.add(sequence(arrival, 50, candidates=(tuple(range(3000)),)))
    for _ in range(5):
        plan = subject.schedule(0.0)
        assert sum(chunk.num_logits for chunk in plan.chunks) <= MAX_SCORED_POSITIONS
        complete(subject, plan)


def test_a_score_never_takes_the_memory_of_running_requests() -> None:
    subject = scheduler(num_rows=3, max_blocks=20, budget=256, max_length=640)
    first = sequence(1, 100)
    start(subject, first)
    score = sequence(0, 10, priority=9, candidates=tuple(tuple(range(20)) for _ in range(60)))
    subject.add(score)
    while score.num_scored < 60:
        complete(subject, subject.schedule(0.0))
    assert first.num_preemptions == 0


def load(prefix_id: str, arrival: int, num_virtual: int) -> RunningRequest:
    item = sequence(arrival, 0)
    item.prefix_id, item.num_virtual, item.is_load = prefix_id, num_virtual, True
    return item


@pytest.mark.parametrize("paged", [False, True])
def test_a_soft_prompt_is_computed_once_in_chunks_and_its_requests_wait(paged: bool) -> None:
    ready: set[str] = set()
    pool = BlockPool(4, 64, 512, 8) if paged else RowPool(4, 64, 512)
    subject = Scheduler(pool, 16, 8 if paged else BLOCK_TOKENS, ready.__contains__)
    stream = sequence(1, 4)
    start(subject, stream)
    loading = load("p", 2, 100)
    asking = [sequence(arrival, 5, num_virtual=100) for arrival in (3, 4)]
    for item in (loading, *asking):
        subject.add(item)
    computed = 0
    for _ in range(100):
        plan = subject.schedule(0.0)
        assert plan.num_positions <= 16
        assert any(chunk.sequence is stream for chunk in plan.chunks)
        computed += sum(chunk.num_virtual for chunk in plan.chunks)
        complete(subject, plan)
        if loading.row is not None and loading.num_computed == 100:
            ready.add("p")
            subject.finish(loading, FinishReason.LENGTH)
        if all(item.num_generated for item in asking):
            break
    assert computed == 100


def test_broken_counters_and_candidates_are_found() -> None:
    subject = scheduler(budget=8)
    item = sequence(1, 4, candidates=(tuple(range(50)),))
    subject.add(item)
    run(subject, 3)
    assert item.num_partial
    item.tokens[-1] += 1
    with pytest.raises(IntegrityError, match="candidate"):
        subject.check_integrity()
