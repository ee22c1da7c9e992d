"""Weighted fair queueing on its own: what a tenant gets in any window, and how one step is divided."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_service.engine.core.fair_share import FairShares, split
from inference_service.engine.core.integrity import IntegrityError
from inference_service.engine.core.step_pace import MIN_STEPS, StepPace

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}


def serve(shares: FairShares, tokens: int, active: str = "abc", backlogged: str | None = None) -> str:
    """Serve one request of the tenant that is due."""
    shares.update(active, active if backlogged is None else backlogged)
    tenant = shares.order()[0]
    shares.charge(tenant, tokens, WEIGHTS[tenant])
    shares.check_integrity()
    return tenant


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50)), min_size=5, max_size=60))
def test_in_any_window_backlogged_tenants_get_their_shares_within_one_largest_request(
    sizes: list[tuple[int, int, int]],
) -> None:
    shares, queues = FairShares(), {tenant: [row[i] for row in sizes] for i, tenant in enumerate("abc")}
    served: list[tuple[str, int]] = []
    while all(queues.values()):
        shares.update("abc", "abc")
        tenant = shares.order()[0]
        served.append((tenant, queues[tenant].pop(0)))
        shares.charge(*served[-1], WEIGHTS[tenant])
    largest = max(size for row in sizes for size in row)
    for begin, end in combinations(range(len(served) + 1), 2):
        got = dict.fromkeys("abc", 0.0)
        for tenant, tokens in served[begin:end]:
            got[tenant] += tokens / WEIGHTS[tenant]
        for one, other in combinations("abc", 2):
            assert abs(got[one] - got[other]) <= largest / WEIGHTS[one] + largest / WEIGHTS[other] + 1e-6


def test_idle_time_earns_no_credit() -> None:
    shares = FairShares()
    for _ in range(100):
        serve(shares, 10, "a")
    order = [serve(shares, 10, "ab") for _ in range(9)]
    assert order.count("a") == 3
    assert order[:3].count("a") <= 2, "a newcomer does not take everything first"


def test_a_tenant_that_ran_without_waiting_earns_no_credit_either() -> None:
    shares = FairShares()
    shares.update("ab", "b")
    for _ in range(100):
        serve(shares, 10, "ab", backlogged="b")
    order = [serve(shares, 10, "ab") for _ in range(9)]
    assert 2 <= order.count("a") <= 4


def test_a_pause_sheds_no_debt() -> None:
    shares = FairShares()
    shares.update("ab", "ab")
    shares.charge("a", 1000, 1.0)
    shares.update("b", "b")
    shares.update("ab", "ab")
    assert [serve(shares, 100, "ab") for _ in range(5)] == ["b"] * 5


def test_when_nothing_is_left_to_do_the_counters_go() -> None:
    shares = FairShares()
    serve(shares, 10)
    shares.update("", "")
    assert shares.served == {}
    shares.served["a"] = -1.0
    with pytest.raises(IntegrityError):
        shares.check_integrity()


def test_counters_of_tenants_that_left_do_not_pile_up() -> None:
    shares = FairShares()
    for number in range(1000):
        shares.update(["steady", f"t{number}"], ["steady", f"t{number}"])
        shares.charge("steady", 10, 1.0)
        shares.charge(f"t{number}", 1, 1.0)
    assert len(shares.served) < 5


DEMANDS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 300), min_size=1)


@settings(max_examples=300, deadline=None)
@given(total=st.integers(0, 400), demands=DEMANDS, weights=st.lists(st.floats(0.1, 10), min_size=8, max_size=8))
def test_a_step_is_divided_max_min_fair(total: int, demands: dict[str, int], weights: list[float]) -> None:
    by_tenant = dict(zip("abcdefgh", weights, strict=True))
    parts = split(total, demands, by_tenant, {})
    assert sum(parts.values()) == min(total, sum(demands.values()))
    assert all(0 <= parts[tenant] <= demands[tenant] for tenant in demands)
    unmet = [tenant for tenant in demands if parts[tenant] < demands[tenant]]
    for tenant in unmet:
        due = total * by_tenant[tenant] / sum(by_tenant[other] for other in demands)
        assert parts[tenant] > due - 1
        for other in demands:
            assert (
                parts[other] / by_tenant[other] <= (parts[tenant] + 1) / by_tenant[tenant] + 1 / by_tenant[other] + 1e-6
            )


def test_what_rounding_leaves_goes_to_the_least_served() -> None:
    weights, served = {"a": 1.0, "b": 1.0, "c": 1.0}, dict.fromkeys("abc", 0.0)
    got = dict.fromkeys("abc", 0)
    for _ in range(30):
        parts = split(1, dict.fromkeys("abc", 5), weights, served)
        for tenant, count in parts.items():
            got[tenant] += count
            served[tenant] += count
    assert got == dict.fromkeys("abc", 10)


def test_the_pace_of_steps_is_learnt() -> None:
    pace = StepPace()
    assert pace.positions_within(1.0) is None
    for step in range(200):
        positions = (4, 20, 256)[step % 3]
        pace.observe(positions, 0.01 + 0.001 * positions)
    assert pace.seconds(4) == pytest.approx(0.014, rel=0.05)
    assert pace.positions_within(0.028) == pytest.approx(18, abs=1)


def test_one_slow_step_says_little() -> None:
    pace = StepPace()
    for step in range(100):
        pace.observe(4 + step % 2 * 16, 0.01 + 0.001 * (4 + step % 2 * 16))
    before = pace.seconds(4)
    pace.observe(4, 30.0)
    assert pace.seconds(4) < 1.2 * before


def test_steps_of_one_size_are_put_down_to_their_positions() -> None:
    pace = StepPace()
    for _ in range(MIN_STEPS):
        pace.observe(4, 0.02)
    assert pace.positions_within(0.04) == 8
