"""The checker's measure of fair shares."""

from __future__ import annotations

from tests.simulation.spans import both, largest_lead, most_at_once


def test_spans_of_both_tenants() -> None:
    assert both([(0, 4), (3, 6), (8, 9)], [(1, 2), (5, 10)]) == [(1, 2), (5, 6), (8, 9)]
    assert both([(0, 4)], []) == []
    assert both([(0, 4), (4, 6)], [(1, 5)]) == [(1, 5)]


def test_the_largest_lead_of_a_part_of_the_window() -> None:
    ones, others = [(0.0, 4.0), (2.0, 4.0), (6.0, 7.0)], [(4.0, 6.0), (5.0, 6.0)]
    assert largest_lead(ones, others, (0.0, 10.0)) == 6.0
    assert largest_lead(ones, others, (3.0, 10.0)) == 2.0
    assert largest_lead(others, ones, (0.0, 10.0)) == 3.0
    assert largest_lead(others, ones, (0.0, 4.0)) == 0.0


def test_the_longest_spans_at_one_moment() -> None:
    assert most_at_once([(0.0, 4.0), (2.0, 5.0), (5.0, 11.0)]) == 7.0
    assert most_at_once([]) == 0.0
