"""Fair shares of a cohort's steps: weights, tenants, newcomers, large runs."""

from __future__ import annotations

import pytest

from trainer_service.training.fair_share import FairShare


def test_shares_follow_weights_and_a_newcomer_starts_at_once() -> None:
    shares = FairShare[str]()
    shares.join("plain", 0)
    shares.join("urgent", 2)
    counts = {"plain": 0, "urgent": 0, "late": 0}
    for step in range(120):
        if step == 100:
            shares.join("late", 0)
        for run in shares.choose({run: 10 for run in counts if run in shares}, 10):
            counts[run] += 1
    assert counts["urgent"] == pytest.approx(4 * counts["plain"], rel=0.1)
    assert counts["late"] >= 2


def test_tenants_share_a_step_by_weight_before_their_runs_do_by_priority() -> None:
    """A tenant with one run of default priority, and a tenant of twice the weight with six urgent runs."""
    shares = FairShare[str]()
    shares.join("alone", 0, "small", 1.0)
    for number in range(6):
        shares.join(f"urgent-{number}", 8, "large", 2.0)
    counts = dict.fromkeys(["alone", *(f"urgent-{number}" for number in range(6))], 0)
    for _ in range(300):
        for run in shares.choose(dict.fromkeys(counts, 10), 10):
            counts[run] += 1
    assert counts["alone"] == pytest.approx(100, abs=2)
    shares.leave("alone")
    assert len(shares) == 6
    shares.join("back", 0, "small", 1.0)
    chosen = [shares.choose({"back": 10, "urgent-0": 10}, 10)[0] for _ in range(30)]
    assert chosen.count("back") == pytest.approx(10, abs=1), "it takes back nothing that it missed"


def test_a_run_larger_than_the_budget_still_gets_its_turn() -> None:
    shares = FairShare[str]()
    shares.join("large", 0)
    shares.join("small", 0)
    chosen = [tuple(shares.choose({"large": 1000, "small": 10}, 100)) for _ in range(102)]
    assert chosen[0] == ("large",)
    assert sum("large" in some for some in chosen) == 2
    assert sum("small" in some for some in chosen) == 100
