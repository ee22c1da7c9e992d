"""Threads follow the processors of the container while the process runs."""

from __future__ import annotations

import os
from itertools import count

import pytest

from shared.process import threads
from shared.process.threads import FollowedProcessors


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment, in which nothing is chosen."""
    monkeypatch.setattr(threads, "_chosen", 0)
    monkeypatch.setattr(os, "environ", environment := dict[str, str]())
    return environment


def followed(started: int, processors: list[int]) -> list[int | None]:
    """What `new_threads` returns every ten seconds; the first number of processors is that of the start."""
    subject = FollowedProcessors(started, iter(processors).__next__, count(0, 10).__next__)
    return [subject.new_threads() for _ in processors[1:]]


@pytest.mark.parametrize(
    ("chosen", "variables", "started", "processors", "expected"),
    [
        (0, {}, 4, [4, 4, 1, 1, 6, 4], [None, 1, None, 6, 4]),
        (3, {}, 3, [4, 1, 6, 6, 4], [1, 3, None, None]),
        (3, {}, 3, [6, 4, 2], [None, 2]),
        (8, {}, 8, [4, 6, 2], [None, 4]),
        (0, {"OMP_NUM_THREADS": "2"}, 2, [4, 1, 6, 4], [1, 2, None]),
        (0, {"OMP_NUM_THREADS": "2,1"}, 2, [4, 1, 6, 4], [1, 2, None]),
        (0, {"OMP_NUM_THREADS": "0"}, 4, [4, 6], [6]),
        (0, {}, 8, [16, 14, 1, 16], [7, 1, 8]),
    ],
)
def test_threads_follow_the_processors(
    chosen: int,
    variables: dict[str, str],
    started: int,
    processors: list[int],
    expected: list[int | None],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_chosen", chosen)
    environment.update(variables)
    assert followed(started, processors) == expected


def test_nothing_is_looked_up_within_ten_seconds() -> None:
    now = iter([0.0, 9.0, 10.0, 19.0])
    subject = FollowedProcessors(4, iter([4, 2]).__next__, now.__next__)
    assert [subject.new_threads() for _ in range(3)] == [None, 2, None]


@pytest.mark.parametrize("calls", [1, 2], ids=["here", "in a parent process too"])
def test_the_limit_of_a_quota_is_no_choice(
    calls: int, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "cpu_quota", lambda: 2.0)
    monkeypatch.setattr(threads, "usable_cpus", lambda: 2)
    for _ in range(calls):
        threads.limit_threads()
    assert {environment["OMP_NUM_THREADS"], environment["MKL_NUM_THREADS"]} == {"2"}
    assert followed(2, [2, 8]) == [8]


@pytest.mark.parametrize(("quota", "expected"), [(4.0, "4"), (None, None)])
def test_a_child_process_takes_the_quota_of_its_own_start(
    quota: float | None, expected: str | None, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for now, processors in ((2.0, 2), (quota, 4)):
        monkeypatch.setattr(threads, "cpu_quota", lambda now=now: now)
        monkeypatch.setattr(threads, "usable_cpus", lambda processors=processors: processors)
        threads.limit_threads()
    assert environment.get("OMP_NUM_THREADS") == environment.get("MKL_NUM_THREADS") == expected


def test_the_users_number_is_kept_and_is_a_choice(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    environment["OMP_NUM_THREADS"] = "3"
    monkeypatch.setattr(threads, "cpu_quota", lambda: 2.0)
    for _ in range(2):
        threads.limit_threads()
    assert (environment["OMP_NUM_THREADS"], environment["MKL_NUM_THREADS"]) == ("3", "3")
    assert followed(3, [2, 1, 8]) == [1, 3]
