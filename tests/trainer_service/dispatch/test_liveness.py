"""What a worker's report says about its liveness."""

from __future__ import annotations

from tests.clock import Clock
from trainer_service.cluster.interface import WorkerReport
from trainer_service.dispatch.supervisor import Liveness


def report(busy_seconds: float = 0.0, *, ready: bool = True, **attempts: int) -> WorkerReport:
    return WorkerReport(0, (), ready, attempts, busy_seconds)


def test_a_step_may_take_as_long_as_is_allowed_and_no_longer() -> None:
    liveness = Liveness(10, Clock())
    assert liveness.why_lost(report(9.9, job=1)) == ""
    assert liveness.why_lost(report(11, job=1)) == "it hangs: one step has taken 11 s (limit 10 s)"


def test_loading_is_not_a_step() -> None:
    assert Liveness(10, Clock()).why_lost(report(500, ready=False)) == ""


def test_a_stop_has_the_time_of_two_steps_from_when_it_was_asked_for_first() -> None:
    clock = Clock()
    liveness = Liveness(10, clock)
    liveness.asked_to_stop("job", 1)
    clock.now += 15
    liveness.asked_to_stop("job", 1)
    assert liveness.why_lost(report(job=1)) == ""
    clock.now += 6
    assert "has not stopped 21 s after the request" in liveness.why_lost(report(job=1))


def test_a_stop_that_was_carried_out_is_forgotten() -> None:
    clock = Clock()
    liveness = Liveness(10, clock)
    liveness.asked_to_stop("job", 1)
    clock.now += 100
    assert liveness.why_lost(report(job=2)) == "", "a later attempt is another one"
    assert liveness.why_lost(report(job=1)) == ""
