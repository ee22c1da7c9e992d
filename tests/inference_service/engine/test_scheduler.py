"""The scheduler with no model at all: plans are completed as if they had been computed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_service.engine.core.integrity import IntegrityError
from inference_service.engine.core.request import FinishReason
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.kv.rows import BLOCK_TOKENS
from tests.inference_service.engine.scheduling import complete, scheduler, sequence


def test_decodes_go_first_and_a_long_input_comes_in_chunks() -> None:
    subject = scheduler(budget=10)
    short, long = sequence(1, 4), sequence(2, 25)
    subject.add(short)
    complete(subject, subject.schedule(0.0))
    subject.add(long)
    sizes = []
    while long.num_generated == 0:
        plan = subject.schedule(0.0)
        assert plan.chunks[0].sequence is short
        assert plan.chunks[0].count == 1
        assert plan.num_positions <= 10
        sizes.append(plan.chunks[1].count)
        complete(subject, plan)
    assert sizes == [9, 9, 7]
    assert short.num_generated == 4


def test_priority_before_arrival() -> None:
    subject = scheduler(num_rows=1)
    first, urgent, later = sequence(1, 3), sequence(2, 3, priority=5), sequence(3, 3)
    for item in (first, later, urgent):
        subject.add(item)
    order = []
    while subject.has_work:
        plan = subject.schedule(0.0)
        order.append(plan.chunks[0].sequence)
        complete(subject, plan)
        subject.finish(plan.chunks[0].sequence, FinishReason.EOS)
    assert order == [urgent, first, later]


def test_preemption_takes_the_lowest_rank_and_loses_no_token() -> None:
    subject = scheduler(num_rows=2, max_blocks=4, budget=64)
    older, younger = sequence(1, BLOCK_TOKENS - 1), sequence(2, BLOCK_TOKENS - 1)
    subject.add(older)
    subject.add(younger)
    complete(subject, subject.schedule(0.0))
    while not younger.num_preemptions:
        complete(subject, subject.schedule(0.0))
    generated = younger.num_generated
    assert generated > 0
    assert older.num_preemptions == 0
    assert subject.waiting == [younger]
    subject.finish(older, FinishReason.LENGTH)
    while younger.num_generated == generated:
        complete(subject, subject.schedule(0.0))
    assert younger.tokens[-1] == 7
    subject.finish(younger, FinishReason.LENGTH)
    assert subject.pool.num_held == 0


def test_a_finished_request_leaves_its_beginning_to_the_next() -> None:
    subject = scheduler(budget=128)
    first = sequence(1, 40)
    subject.add(first)
    complete(subject, subject.schedule(0.0))
    subject.finish(first, FinishReason.EOS)
    second = sequence(2, 40)
    second.tokens[:30] = first.tokens[:30]
    subject.add(second)
    plan = subject.schedule(0.0)
    assert second.cached_tokens == 30
    assert plan.chunks[0].start == 30


def test_the_same_input_again_still_computes_its_last_token() -> None:
    subject = scheduler(budget=128)
    for arrival in (1, 2):
        item = sequence(arrival, 20)
        item.tokens = list(range(20))
        subject.add(item)
        plan = subject.schedule(0.0)
        assert plan.chunks[0].count == (20 if arrival == 1 else 1)
        complete(subject, plan)
        subject.finish(item, FinishReason.EOS)


def test_another_prompt_shares_nothing() -> None:
    subject = scheduler(budget=128)
    first, second = sequence(1, 20, num_virtual=5), sequence(2, 20)
    second.tokens = list(first.tokens)
    subject.add(first)
    complete(subject, subject.schedule(0.0))
    subject.finish(first, FinishReason.EOS)
    subject.add(second)
    subject.schedule(0.0)
    assert second.cached_tokens == 0


def test_deadlines_are_seen_waiting_and_running() -> None:
    subject = scheduler(num_rows=1)
    running, waiting = sequence(1, 3), sequence(2, 3)
    running.deadline, waiting.deadline = 5.0, 4.0
    subject.add(running)
    subject.add(waiting)
    complete(subject, subject.schedule(0.0))
    assert subject.expired(3.9) == []
    assert subject.expired(4.0) == [waiting]
    assert subject.expired(5.0) == [waiting, running]


def test_candidates_of_a_score_are_grouped_under_the_budget() -> None:
    subject = scheduler(budget=12)
    item = sequence(1, 15, candidates=((1, 2, 3), (4, 5, 6), (7,), (8, 9, 10, 11, 12)))
    subject.add(item)
    groups = []
    while item.num_scored < 4:
        plan = subject.schedule(0.0)
        assert plan.num_positions <= 12
        groups.append(plan.chunks[0].branches)
        complete(subject, plan)
    assert [branch for group in groups for branch in group] == list(item.candidates)


def test_books_that_do_not_balance_are_found() -> None:
    subject = scheduler()
    item = sequence(1, 3)
    subject.add(item)
    complete(subject, subject.schedule(0.0))
    subject.pool.rows[0].holder = None
    with pytest.raises(IntegrityError):
        subject.check_integrity()


@settings(max_examples=60, deadline=None)
@given(
    inputs=st.lists(
        st.tuples(st.integers(1, 90), st.integers(1, 40), st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=12
    ),
    num_rows=st.integers(1, 5),
    max_blocks=st.integers(5, 12),
    budget=st.integers(1, 70),
)
def test_everything_ends_whatever_comes(
    inputs: list[tuple[int, int, int, int]], num_rows: int, max_blocks: int, budget: int
) -> None:
    subject = scheduler(num_rows, max_blocks, budget, max_length=max_blocks * BLOCK_TOKENS)
    arriving = [(sequence(i, n, priority=p), new, at) for i, (n, new, p, at) in enumerate(inputs)]
    for step in range(5000):
        for item, _, at in arriving:
            if at == step:
                subject.add(item)
        if step > 9 and not subject.has_work:
            break
        plan = subject.schedule(float(step))
        assert plan.num_positions <= budget
        complete(subject, plan)
        for item, new, _ in arriving:
            if item.finish_reason is None and item.num_generated >= new:
                subject.finish(item, FinishReason.LENGTH)
    assert all(item.finish_reason is FinishReason.LENGTH and item.num_generated == new for item, new, _ in arriving)


def beginning_alike(arrival: int, num_common: int, *, num_virtual: int = 0) -> RunningRequest:
    item = sequence(arrival, num_common + 5, num_virtual=num_virtual)
    item.tokens[:num_common] = range(num_common)
    return item


def test_inputs_that_arrive_together_and_begin_alike_compute_their_beginning_once() -> None:
    subject = scheduler(num_rows=6, budget=64)
    alike = [beginning_alike(i, 100) for i in range(4)]
    other = sequence(9, 20)
    for item in (*alike, other):
        subject.add(item)
    computed = dict.fromkeys((*alike, other), 0)
    for _ in range(20):
        plan = subject.schedule(0.0)
        for chunk in plan.chunks:
            if chunk.sequence.num_generated == 0:
                computed[chunk.sequence] += chunk.count
        complete(subject, plan)
    assert computed[alike[0]] == 105
    assert [computed[item] for item in alike[1:]] == [5, 5, 5]
    assert computed[other] == 20
    assert all(item.num_generated for item in (*alike, other))


@pytest.mark.parametrize("apart", ["prefix", "short", "no reuse"])
def test_no_request_waits_for_what_cannot_be_shared(apart: str) -> None:
    subject = scheduler(budget=512)
    if apart == "no reuse":
        subject.pool.reuse = False
    first = beginning_alike(1, 100)
    second = beginning_alike(2, 10 if apart == "short" else 100, num_virtual=5 if apart == "prefix" else 0)
    subject.add(first)
    subject.add(second)
    assert {chunk.sequence for chunk in subject.schedule(0.0).chunks} == {first, second}


def test_a_request_that_waits_for_a_shared_beginning_starts_when_its_owner_is_gone() -> None:
    subject = scheduler(budget=16)
    first, second = beginning_alike(1, 100), beginning_alike(2, 100)
    subject.add(first)
    subject.add(second)
    complete(subject, subject.schedule(0.0))
    assert subject.waiting == [second]
    subject.finish(first, FinishReason.CANCELLED)
    plan = subject.schedule(0.0)
    assert plan.chunks[0].sequence is second
    assert plan.chunks[0].start == 16, "what the first had computed is used"
