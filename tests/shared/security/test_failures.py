"""Failed authentications: an address with too many of them has to wait."""

from __future__ import annotations

import pytest

from shared.errors import Overloaded
from shared.security.authenticator import FREE_FAILURES, MAX_PEERS, FailureLimiter
from tests.clock import Clock


def test_an_address_that_fails_too_often_waits_and_others_do_not() -> None:
    clock = Clock()
    limiter = FailureLimiter(clock)
    for _ in range(FREE_FAILURES):
        limiter.check("10.0.0.1")
        limiter.failed("10.0.0.1")
    with pytest.raises(Overloaded) as caught:
        limiter.check("10.0.0.1")
    limiter.check("10.0.0.2")
    clock.now += caught.value.retry_after_seconds
    limiter.check("10.0.0.1")
    for number in range(MAX_PEERS + 50):
        limiter.failed(str(number))
    assert len(limiter._peers) == MAX_PEERS
