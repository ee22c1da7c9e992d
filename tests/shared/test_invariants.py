from __future__ import annotations

import logging

import pytest
from prometheus_client import CollectorRegistry

from shared import invariants
from shared.invariants import Invariant
from shared.rpc.metrics import RpcMetrics

NAME = "softprompt_invariants_broken_total"


def test_broken_invariants_are_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    RpcMetrics(registry)
    grows, fits = ({"invariant": invariant.value} for invariant in (Invariant.REVISION_GROWS, Invariant.LOG_FITS))
    before, other = registry.get_sample_value(NAME, grows), registry.get_sample_value(NAME, fits)
    assert before is not None
    with caplog.at_level(logging.ERROR):
        invariants.check(True, Invariant.REVISION_GROWS)
        assert not caplog.records
        invariants.check(False, Invariant.REVISION_GROWS, before=4, after=3)
    assert caplog.records[0].fields == {"invariant": "revision_grows", "before": 4, "after": 3}  # type: ignore[attr-defined]
    assert registry.get_sample_value(NAME, grows) == before + 1
    assert registry.get_sample_value(NAME, fits) == other
