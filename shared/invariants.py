"""Invariants that the services check while they run. A broken one is logged as an error and counted; work goes on.

`shared.rpc.metrics` exports the counts.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

log = logging.getLogger(__name__)


class Invariant(StrEnum):
    """What holds unless this program, or another writer of its data, has a fault."""

    LOG_FITS = "log_fits"
    """Each entry of the prompt store's log fits the state before it."""
    REVISION_GROWS = "revision_grows"
    """A replica never goes back to an earlier revision of the prompt store."""
    JOB_ON_ONE_WORKER = "job_on_one_worker"
    """At most one worker of a trainer has an attempt of a job."""


_lock = threading.Lock()
_broken: Counter[Invariant] = Counter()


def check(holds: bool, invariant: Invariant, **fields: object) -> None:
    """Logs and counts the invariant as broken unless it `holds`. `fields` say where."""
    if holds:
        return
    with _lock:
        _broken[invariant] += 1
    log.error("an invariant is broken", extra={"fields": {"invariant": invariant.value, **fields}}, stack_info=True)


def num_broken() -> Mapping[Invariant, int]:
    """How often each invariant was broken since the process began."""
    with _lock:
        return {invariant: _broken[invariant] for invariant in Invariant}
