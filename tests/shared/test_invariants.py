from __future__ import annotations

import json
import logging

import pytest
from prometheus_client import CollectorRegistry

from shared import invariants
from shared.errors import DamagedBlob
from shared.invariants import Invariant
from shared.rpc.metrics import RpcMetrics
from shared.store.layout import log_key
from shared.store.memory import MemoryBackend
from shared.store.store import PromptStore

NAME = "softprompt_invariants_broken_total"
MOVE = {"op": "alias", "prompt": "never-published", "alias": "default", "targets": [{"version": 1, "weight": 1}]}


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


@pytest.mark.parametrize(
    ("written", "counts"),
    [({"format": 2}, 0), ({"revision": 2}, 0), ({}, 1)],
)
def test_an_entry_that_does_not_fit_counts_once_and_one_that_is_unreadable_does_not(
    written: dict[str, object], counts: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A newer release may write what this one can't read, and replicas look for new entries every second."""
    store = PromptStore(MemoryBackend())
    entry = {"format": 1, "revision": 1, "txid": "t", "time": "2026-01-01T00:00:00Z", "actor": "a", "ops": [MOVE]}
    store.backend.create(log_key(1), json.dumps({**entry, **written}).encode())
    before = invariants.num_broken()[Invariant.LOG_FITS]
    for _ in range(3):
        with pytest.raises(DamagedBlob):
            store.refresh()
    assert invariants.num_broken()[Invariant.LOG_FITS] - before == counts
    assert len(caplog.records) == counts
