"""Waits until the fleet serves a version that a job has just published."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from shared.errors import SoftPromptError
from shared.process.call_pool import CallPool
from shared.prompt.manifest import parse_timestamp
from shared.store.fleet import Serving, serving
from shared.store.index import VersionRecord
from shared.store.store import PromptStore

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5


async def wait_until_served(
    store: PromptStore, pool: CallPool, version: VersionRecord, seconds: float, withdrawn: Callable[[], Awaitable[bool]]
) -> Serving:
    """Waits until all live replicas of its base model serve the version, or one refuses it, or `withdrawn()` is True,
    or `seconds` after its publication. Returns the last known serving state.

    The time counts from the publication, so that a restarted trainer doesn't wait again; a wrong clock, of this trainer
    or of the one that published, makes it at most `seconds` from now. Errors of the prompt store are logged and the
    read is repeated.
    """
    age_seconds = max(0.0, time.time() - parse_timestamp(version.created_at).timestamp())
    deadline = time.monotonic() + seconds - age_seconds
    status = Serving()
    while True:
        try:
            status = serving(version, await pool.call(store.list_replicas))
        except SoftPromptError as error:
            log.warning("the replicas' records can't be read: %s", error.message)
        if status.is_decided or time.monotonic() >= deadline or await withdrawn():
            return status
        pause_seconds = max(_LOOK_SECONDS, store.poll_seconds) * random.uniform(0.8, 1.2)
        await asyncio.sleep(min(pause_seconds, max(0.0, deadline - time.monotonic())))
