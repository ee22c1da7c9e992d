"""When a base model counts as broken, judged by its launches."""

from __future__ import annotations

from tests.clock import Clock
from trainer_service.dispatch.launches import Launches
from trainer_service.jobs.config import JobsConfig

CONFIG = JobsConfig(max_model_failures=3, broken_model_seconds=100.0, retry_first_seconds=10.0, retry_max_seconds=40.0)


def fail(launches: Launches, clock: Clock, seconds: float, *, is_models_fault: bool = True) -> bool:
    clock.now += seconds
    return launches.failed("m", "OSError: no weights", is_models_fault=is_models_fault)


def test_a_model_is_broken_after_enough_failures_over_enough_time() -> None:
    clock = Clock(0.0)
    launches = Launches(CONFIG, clock)
    assert [fail(launches, clock, 50.0) for _ in range(4)] == [False, False, True, True]
    assert "no weights" in launches.why_broken("m")
    assert not launches.may_try("m")
    clock.now += 81.0
    assert launches.may_try("m"), "once more, after a longer pause"
    launches.succeeded("m", 3.0)
    assert (launches.why_broken("m"), launches.may_try("m"), launches.seconds("m")) == ("", True, 3.0)


def test_many_failures_in_a_short_time_break_no_model() -> None:
    clock = Clock(0.0)
    launches = Launches(CONFIG, clock)
    assert not any(fail(launches, clock, 0.0) for _ in range(20)), "they were launched together"
    clock.now = 11.0
    assert launches.may_try("m")


def test_what_is_not_the_models_fault_breaks_no_model() -> None:
    clock = Clock(0.0)
    launches = Launches(CONFIG, clock)
    assert not any(fail(launches, clock, 60.0, is_models_fault=False) for _ in range(9))
    assert fail(launches, clock, 60.0) is False
    assert not fail(launches, clock, 60.0, is_models_fault=False), "failures for other reasons begin the count anew"
    assert not any(fail(launches, clock, 60.0) for _ in range(2))
    assert launches.is_suspect("m")
