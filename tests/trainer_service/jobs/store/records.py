"""Jobs that tests put into the job store and claim."""

from __future__ import annotations

import time
from typing import Any

from tests.trainer_service.builders import record
from trainer_service.jobs.model import Job
from trainer_service.jobs.record import Record
from trainer_service.jobs.store.job_store import JobStore

LIMITS: dict[str, Any] = {"max_queued": 1000, "max_active_of_caller": 1000}


def create(store: JobStore, made: Record | None = None) -> Job:
    return store.create(made or record(), **LIMITS)


def claim(store: JobStore, owner: str = "me", lease_seconds: float = 60.0, *, exclusive: bool = False) -> Record | None:
    now = time.time()
    return store.claim("tiny", owner, now + lease_seconds, now, exclusive=exclusive)
