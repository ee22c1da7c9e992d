"""Limits of each caller: the token bucket, and quotas with the time to wait."""

from __future__ import annotations

import pytest

from shared.caller import Caller, CallerLimits, Role
from shared.errors import Overloaded
from shared.security.bucket import Bucket
from shared.security.quotas import Quotas
from tests.clock import Clock


def test_a_bucket_fills_and_may_be_overdrawn() -> None:
    clock = Clock()
    bucket = Bucket(2.0, 10.0, clock)
    bucket.take(14.0)
    assert bucket.seconds_until(1.0) == pytest.approx(2.5)
    clock.now += 100
    assert bucket.level == 10.0
    assert bucket.is_full


def test_each_limit_of_a_caller_is_reported_with_the_time_to_wait() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    limits = CallerLimits(
        requests_per_second=2.0, tokens_per_second=10.0, concurrent_calls=1, dataset_bytes_per_day=1000.0
    )
    caller, other = (
        Caller("a", frozenset({Role.ADMIN}), limits=limits),
        Caller("b", frozenset({Role.ADMIN}), limits=limits),
    )
    with quotas.taken(caller) as usage:
        with pytest.raises(Overloaded, match="of your calls are running"), quotas.taken(caller):
            pass
        with quotas.taken(other):
            pass
        usage.charge_tokens(150)  # a window of 100 and half as much again
        with pytest.raises(Overloaded, match="bytes of datasets") as caught:
            usage.check_bytes(1001)
        usage.charge_bytes(1000)
        with pytest.raises(Overloaded):
            usage.charge_bytes(1)
    with pytest.raises(Overloaded, match="tokens a second") as caught, quotas.taken(caller):
        pass
    assert caught.value.retry_after_seconds == pytest.approx(5.1)
    clock.now += 6
    for _ in range(2):
        with quotas.taken(caller):
            pass
    with pytest.raises(Overloaded, match="requests a second") as caught, quotas.taken(caller):
        pass
    assert caught.value.retry_after_seconds == pytest.approx(0.5)


def test_new_limits_hold_at_once_and_running_calls_go_on_counting() -> None:
    quotas = Quotas()
    with quotas.taken(Caller("a", frozenset(), limits=CallerLimits(concurrent_calls=5))):
        strict = Caller("a", frozenset(), limits=CallerLimits(concurrent_calls=1))
        with pytest.raises(Overloaded), quotas.taken(strict):
            pass
    with quotas.taken(strict):
        pass
