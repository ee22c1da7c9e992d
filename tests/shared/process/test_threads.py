"""Threads follow the processors of the container while the process runs."""

from __future__ import annotations

import pytest

from shared.process import threads
from shared.process.threads import FollowedProcessors


@pytest.mark.parametrize(
    ("chosen", "environment", "expected"),
    [
        (0, None, [None, None, 1, None, 6, 4]),
        (3, None, [None, None, 1, None, 3, 3]),
        (0, "2", [None, None, 1, None, 2, 2]),
        (0, "2,1", [None, None, 1, None, 2, 2]),
    ],
)
def test_threads_follow_a_quota_that_changes(
    chosen: int, environment: str | None, expected: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_chosen", chosen)
    if environment is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    processors, now = 4, 0.0
    followed = FollowedProcessors(lambda: processors, lambda: now)
    found = list[int | None]()
    for seconds, count in ((1.0, 1), (9.0, 4), (10.0, 1), (15.0, 6), (20.0, 6), (30.0, 4)):
        now, processors = seconds, count
        found.append(followed.new_threads())
    assert found == expected


def test_the_limit_that_this_process_set_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cpu_quota", lambda: 2.0)
    monkeypatch.setattr(threads, "usable_cpus", lambda: 2)
    monkeypatch.setattr(threads, "_is_limited_here", False)
    threads.limit_threads()
    processors, now = 2, 0.0
    followed = FollowedProcessors(lambda: processors, lambda: now)
    processors, now = 8, 10.0
    assert followed.new_threads() == 8
