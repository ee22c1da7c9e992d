"""The scheduler between tenants, and under requests that would fill a step: no model, plans are completed as if they
had been computed.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_service.engine.core.plan import StepPlan
from inference_service.engine.core.preemption import MAX_PREEMPTIONS, MIN_STEPS
from inference_service.engine.core.request import FinishReason
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.kv.blocks import BlockPool
from inference_service.engine.kv.rows import BLOCK_TOKENS, RowPool, Trim
from inference_service.engine.scheduler import MAX_PASSED_OVER, Scheduler
from tests.inference_service.engine.scheduling import complete, of, run, scheduler, sequence, start


def test_decodes_beyond_the_budget_take_turns() -> None:
    subject = scheduler(num_rows=8, budget=4)
    items = [sequence(i, 1) for i in range(8)]
    start(subject, *items)
    before = {item: item.num_generated for item in items}
    run(subject, 40)
    gained = [item.num_generated - before[item] for item in items]
    assert min(gained) >= 19
    assert max(gained) - min(gained) <= 1


def test_prefill_has_its_part_beside_decodes_that_fill_the_budget() -> None:
    subject = scheduler(num_rows=8, budget=4)
    start(subject, *(sequence(i, 1) for i in range(4)))
    late = sequence(50, 10)
    subject.add(late)
    run(subject, 12)
    assert late.num_generated > 0


def test_with_a_budget_of_one_everything_still_moves() -> None:
    subject = scheduler(num_rows=4, budget=1)
    start(subject, sequence(1, 2), sequence(2, 2))
    late = sequence(3, 5)
    subject.add(late)
    run(subject, 40)
    assert late.num_generated > 0


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_two_tenants_share_a_step_by_weight(weight: float) -> None:
    subject = scheduler(num_rows=8, max_blocks=2000, budget=40, max_length=8000)
    for arrival in range(3):
        subject.add(of("a", arrival, 6000, weight=weight))
    subject.add(of("b", 9, 6000))
    got = run(subject, 50)
    assert got["a"] / got["b"] == pytest.approx(weight, rel=0.1)
    assert got["a"] + got["b"] == 50 * 40, "nothing is wasted"


def test_what_a_tenant_does_not_want_goes_to_the_others() -> None:
    subject = scheduler(num_rows=8, max_blocks=2000, budget=40, max_length=8000)
    start(subject, of("a", 1))
    subject.add(of("b", 2, 6000))
    assert run(subject, 10) == {"a": 10, "b": 390}


def test_a_tenants_one_request_starts_next_behind_anothers_many() -> None:
    subject = scheduler(num_rows=1, budget=64)
    start(subject, of("many", 0))
    for arrival in range(1, 200):
        subject.add(of("many", arrival))
    one = of("one", 999)
    subject.add(one)
    subject.finish(subject.running[0], FinishReason.EOS)
    complete(subject, subject.schedule(0.0))
    assert one.num_generated == 1


def test_priority_orders_the_work_of_one_tenant_never_that_of_two() -> None:
    subject = scheduler(num_rows=1, budget=64)
    order: list[str] = []
    for arrival in range(4):
        subject.add(of("loud", arrival, priority=100))
    for arrival in range(4, 8):
        subject.add(of("quiet", arrival))
    while subject.has_work:
        plan = subject.schedule(0.0)
        complete(subject, plan)
        order.append(plan.chunks[0].sequence.tenant)
        subject.finish(plan.chunks[0].sequence, FinishReason.EOS)
    assert order[:6] in (["loud", "quiet"] * 3, ["quiet", "loud"] * 3)


def test_a_higher_priority_takes_a_row_of_its_own_tenant() -> None:
    subject = scheduler(num_rows=2, budget=64)
    mine, other = of("a", 1), of("b", 2)
    start(subject, mine, other)
    generated = list(mine.tokens)
    urgent = of("a", 3, priority=5)
    subject.add(urgent)
    complete(subject, subject.schedule(0.0))
    assert urgent.num_generated == 1
    assert (mine.row, other.row is None) == (None, False)
    subject.finish(urgent, FinishReason.EOS)
    run(subject, 2)
    assert mine.tokens[: len(generated)] == generated
    assert mine.num_generated > 1


def test_preemptions_of_one_request_are_bounded() -> None:
    subject = scheduler(num_rows=1, budget=64)
    victim = of("a", 0)
    start(subject, victim)
    for arrival in range(1, 10):
        urgent = of("a", arrival, priority=5)
        subject.add(urgent)
        run(subject, 2)
        subject.finish(urgent, FinishReason.CANCELLED)
        run(subject, 2)
    assert victim.num_preemptions == MAX_PREEMPTIONS


def test_a_tenant_far_under_its_share_gets_rows_of_one_that_is_over_it_and_then_it_stops() -> None:
    subject = scheduler(num_rows=8, max_blocks=200, budget=64)
    hogs = [of("hog", arrival) for arrival in range(8)]
    start(subject, *hogs)
    mine = [of("mine", 100 + arrival) for arrival in range(8)]
    for item in mine:
        subject.add(item)
    run(subject, MIN_STEPS + 60)
    assert sum(item.row is not None for item in mine) == 2, "far under its share of four ends at two"
    assert subject.num_preemptions == 2
    run(subject, 200)
    assert subject.num_preemptions == 2, "then two tenants leave each other alone"
    subject.finish(next(hog for hog in hogs if hog.row is not None), FinishReason.EOS)
    run(subject, 1)
    assert sum(item.row is not None for item in mine) == 3, "rows that get free go to the one that was served least"


def test_memory_counts_like_rows() -> None:
    subject = scheduler(num_rows=8, max_blocks=16, budget=600)
    long = [of("hog", arrival, 220) for arrival in range(2)]
    start(subject, *long)
    small = of("mine", 9, 100)
    subject.add(small)
    run(subject, MIN_STEPS + 2)
    assert small.num_generated > 0


def test_a_request_that_finds_no_room_stops_no_other_tenant_but_not_for_ever() -> None:
    subject = scheduler(num_rows=4, max_blocks=16, budget=600, max_length=512)
    start(subject, of("a", 0, 200))
    large = of("b", 1, 400)
    subject.add(large)
    small = of("a", 2, 20)
    subject.add(small)
    complete(subject, subject.schedule(0.0))
    assert small.num_generated == 1
    assert large.row is None
    large.num_passed_over = MAX_PASSED_OVER
    later = of("a", 3, 20)
    subject.add(later)
    subject.schedule(0.0)
    assert later.row is None


def test_short_requests_give_back_what_longer_ones_left_in_their_rows() -> None:
    subject = scheduler(num_rows=3, max_blocks=16, budget=1000, max_length=256)
    for arrival in (1, 2):
        item = sequence(arrival, 220)
        start(subject, item)
        subject.finish(item, FinishReason.LENGTH)
    short = [sequence(10 + i, 20) for i in range(2)]
    start(subject, *short)
    assert subject.pool.held_blocks == 2
    last = sequence(20, 100)
    subject.add(last)
    plan = subject.schedule(0.0)
    assert last.row is not None
    assert all(isinstance(op, Trim) for op in plan.ops)


def test_a_step_takes_no_tenants_streams_longer_than_its_share_allows() -> None:
    subject = scheduler(num_rows=8, max_blocks=2000, budget=256, max_length=8000)
    for step in range(60):
        positions = 4 + 60 * (step % 2)
        subject.pace.observe(positions, 0.010 + 0.001 * positions)
    start(subject, *(of("streams", arrival) for arrival in range(4)))
    subject.add(of("greedy", 50, 6000))
    for _ in range(5):
        plan = subject.schedule(0.0)
        complete(subject, plan)
        assert sum(chunk.sequence.tenant == "streams" for chunk in plan.chunks) == 4
        assert 0.010 + 0.001 * plan.num_positions < 2 * 0.014
        assert plan.num_positions > 10
    alone = scheduler(num_rows=8, max_blocks=2000, budget=256, max_length=8000)
    alone.pace = subject.pace
    start(alone, *(of("streams", arrival) for arrival in range(4)))
    alone.add(of("streams", 50, 6000))
    assert alone.schedule(0.0).num_positions == 256


REQUESTS = st.tuples(
    st.integers(1, 60),  # input
    st.integers(1, 20),  # new tokens
    st.integers(0, 2),  # priority
    st.integers(0, 9),  # arrival
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["", "", "p", "q"]),
    st.lists(st.integers(1, 40), max_size=4),
)


@settings(max_examples=80, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=12),
    num_rows=st.integers(1, 5),
    max_blocks=st.integers(5, 12),
    budget=st.integers(1, 70),
    paged=st.booleans(),
)
def test_everything_ends_whatever_tenants_ask_for(
    requests: list[tuple[int, int, int, int, str, str, list[int]]],
    num_rows: int,
    max_blocks: int,
    budget: int,
    paged: bool,
) -> None:
    """Scores, soft prompts that come and go, tenants of several weights: no step exceeds its budget, each candidate is
    scored once.
    """
    ready: set[str] = set()
    block = BLOCK_TOKENS
    pool = (
        BlockPool(num_rows, max_blocks, max_blocks * block, block)
        if paged
        else RowPool(num_rows, max_blocks, max_blocks * block)
    )
    subject = Scheduler(pool, budget, block, ready.__contains__)
    arriving, scored = [], dict[RunningRequest, list[int]]()
    for index, (num_input, new, priority, at, tenant, prefix, lengths) in enumerate(requests):
        item = of(tenant, index, num_input, weight={"a": 1.0, "b": 2.0, "c": 0.3}[tenant], priority=priority)
        item.candidates = tuple(tuple(range(100 * i, 100 * i + length)) for i, length in enumerate(lengths))
        if prefix:
            item.prefix_id, item.num_virtual = prefix, 30
        arriving.append((item, new, at))
        scored[item] = []
    for step in range(6000):
        for item, _, at in arriving:
            if at == step:
                subject.add(item)
        if step > 9 and not subject.has_work:
            break
        if step % 7 == 0:
            ready.clear()
        plan: StepPlan = subject.schedule(float(step))
        assert plan.num_positions <= budget
        assert plan.chunks or not subject.has_work
        for chunk in plan.chunks:
            scored[chunk.sequence] += [token for branch in chunk.branches for token in branch]
            if chunk.num_virtual and chunk.start + chunk.num_virtual == chunk.sequence.num_virtual:
                ready.add(str(chunk.sequence.prefix_id))
        complete(subject, plan)
        for item, new, _ in arriving:
            done = item.num_scored == len(item.candidates) if item.is_score else item.num_generated >= new
            if item.finish_reason is None and done:
                subject.finish(item, FinishReason.LENGTH)
    assert all(item.finish_reason is FinishReason.LENGTH for item, _, _ in arriving)
    assert all(
        scored[item] == [token for candidate in item.candidates for token in candidate] for item, _, _ in arriving
    )
    assert subject.pool.num_held == 0
