"""Fair queueing as pure arithmetic: which tenant's job is next."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_service.jobs.fair_queue import (
    QUANTUM_SECONDS,
    Ledger,
    TenantShare,
    fair_part,
    in_order,
    positions_before,
    queue_clock,
)


def shares(**times: float) -> dict[str, TenantShare]:
    return {tenant: TenantShare(tenant, virtual_time=time) for tenant, time in times.items()}


def serve(ledger: Ledger, queues: Counter[str], now: float) -> str:
    """The tenant whose job is claimed."""
    waiting = [tenant for tenant, count in queues.items() if count]
    tenant = in_order(ledger.at(now), waiting)[0]
    queues[tenant] -= 1
    ledger.claim(tenant, waiting, now, is_last=not queues.total())
    return tenant


def test_a_tenant_that_holds_nothing_goes_before_one_that_holds_much() -> None:
    ledger = Ledger({}, [("many", 0.0)] * 8)
    queues = Counter(many=5000, one=1)
    assert serve(ledger, queues, 10.0) == "one"
    assert serve(ledger, queues, 10.0) == "many"


def test_places_that_become_free_at_once_are_divided_by_weight() -> None:
    ledger = Ledger({"light": TenantShare("light", 1.0), "heavy": TenantShare("heavy", 3.0)})
    served = Counter(serve(ledger, queues, 0.0) for queues in [Counter(light=100, heavy=100)] * 40)
    assert served == Counter(heavy=30, light=10)


def test_nothing_is_saved_up_while_a_tenant_has_nothing_to_run() -> None:
    ledger, queues = Ledger({}), Counter(busy=200)
    for number in range(100):
        assert serve(ledger, queues, number * 60.0) == "busy"
        ledger.leave("busy", number * 60.0, number * 60.0 + 60.0)
    queues["back"] = 100
    served = [serve(ledger, queues, 6000.0) for _ in range(21)]
    assert served[0] == "back"
    assert Counter(served) == Counter(busy=10, back=11), (
        "it begins where the other was at its latest claim, not where it once stood"
    )


def test_use_while_no_other_waited_does_not_count() -> None:
    ledger, queues = Ledger({}), Counter(big=50)
    for number in range(50):
        serve(ledger, queues, float(number))
        ledger.leave("big", float(number), number + 600.0)
    queues.update(big=100, small=100)
    served = [serve(ledger, queues, 1000.0) for _ in range(20)]
    assert abs(served.count("small") - served.count("big")) <= 2 * (600 // QUANTUM_SECONDS)
    assert "big" in served


def test_long_jobs_count_for_what_they_took() -> None:
    """One place, served in turn: the tenant with jobs of ten minutes gets as much time as the one with jobs of one."""
    ledger, queues, now, seconds = Ledger({}), Counter(long=1000, short=10_000), 0.0, Counter[str]()
    for _ in range(500):
        tenant = serve(ledger, queues, now)
        took = 600.0 if tenant == "long" else 60.0
        ledger.leave(tenant, now, now + took)
        now += took
        seconds[tenant] += int(took)
    assert seconds["long"] == pytest.approx(seconds["short"], rel=0.05)


@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.tuples(st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.integers(1, 30)), min_size=1
    ),
    st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 600)), max_size=12),
)
def test_a_position_is_what_the_order_of_claims_comes_to(
    tenants: dict[str, tuple[float, int]], held: list[tuple[str, float]]
) -> None:
    """If all jobs take equally long, the n-th claimed job is the one whose reported position was n - 1."""
    ledger = Ledger({tenant: TenantShare(tenant, weight) for tenant, (weight, _) in tenants.items()}, held)
    now, counts = 600.0, {tenant: count for tenant, (_, count) in tenants.items()}
    positions = {
        (tenant, index): positions_before(ledger.at(now), counts, tenant, index)
        for tenant, count in counts.items()
        for index in range(count)
    }
    assert sorted(positions.values()) == list(range(len(positions))), "every position is reported once"
    for tenant, count in counts.items():
        assert [positions[tenant, index] for index in range(count)] == sorted(
            positions[tenant, index] for index in range(count)
        )
    first = min(positions, key=lambda job: positions[job])
    assert first == (in_order(ledger.at(now), counts)[0], 0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0, 300)), max_size=60))
def test_the_queues_time_never_goes_back_and_no_waiting_tenant_is_behind_it(
    events: list[tuple[str, bool, float]],
) -> None:
    ledger, queues, now, clock = Ledger({}), Counter[str](), 0.0, 0.0
    running: list[tuple[str, float]] = []
    for tenant, arrives, seconds in events:
        now += seconds
        if arrives:
            queues[tenant] += 1
        elif queues.total():
            running.append((serve(ledger, queues, now), now))
        elif running:
            ledger.leave(*running.pop(0), now)
        found = ledger.at(now)
        assert queue_clock(found) >= clock
        clock = queue_clock(found)
        assert all(share.held_seconds >= share.num_held * QUANTUM_SECONDS for share in found.values())


def test_equal_tenants_go_by_what_they_had_before() -> None:
    behind = shares(a=50.0, b=10.0)
    later = {**behind, "c": TenantShare("c", virtual_time=100.0, clock=80.0)}
    assert in_order(later, "ab") == ["b", "a"], "both start at the queue's time"
    assert in_order(behind, "ab") == ["b", "a"]


def test_a_fair_part_of_the_queue() -> None:
    assert fair_part(100, 1.0, []) == 100
    assert fair_part(100, 1.0, [1.0]) == 50
    assert fair_part(100, 3.0, [1.0]) == 75
    assert fair_part(2, 1.0, [1.0] * 9) == 1
