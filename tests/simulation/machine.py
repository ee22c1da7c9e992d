"""The machine under the simulated processes: clocks, random numbers, and blocking calls in virtual time.

Blocking functions run as greenlets, so that they can be interleaved and stopped at each call to the object store.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import importlib
import random
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar
from unittest import mock

from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy.util import greenlet_spawn

from shared.errors import Unavailable
from shared.process import daemon_thread
from shared.process.call_pool import CallPool
from shared.store import log
from shared.store.commit import decode_commit
from softprompt.routing import store as routing_store
from tests.simulation.loop import Loop, current_node, pause_inside
from trainer_service.dispatch import manager
from trainer_service.jobs import fair_queue
from trainer_service.jobs.store import tenant_shares

T = TypeVar("T")

CALL = contextvars.ContextVar("the function that a pool runs", default="")
EPOCH = 1_700_000_000.0
QUANTUM_SECONDS = 2.0
"""Smallest charge for a job on a worker. Jobs take some seconds here; with a minute, all would cost the same."""
WITH_DATETIME = (
    "inference_service.prompts.registry",
    "inference_service.prompts.version_loader",
    "shared.prompt.manifest",
    "shared.store.garbage",
    "shared.store.memory",
    "shared.store.replicas",
    "shared.store.usage",
    "shared.store.verify",
    "tests.simulation.serving",
    "trainer_service.jobs.model",
)
"""Modules of the simulated code that call `datetime.now`, which can't be replaced in one place."""


class Fate(NamedTuple):
    """What happens to a call to a system: it is done after `before` seconds, and answered after `after` more."""

    before: float
    after: float = 0.0
    is_done: bool = True
    is_answered: bool = True


CallFault = Callable[[str, str], Fate]
"""For a call to a system, by the system's name and the called function's."""


def _pool_call(fault: CallFault) -> Any:
    async def call_within(pool: CallPool, timeout_seconds: float, function: Callable[[], Any]) -> Any:
        if pool._closed:
            raise Unavailable("the service is stopping", system=pool.system)
        name = getattr(getattr(function, "func", None), "__name__", "")  # `CallPool.call` gives a partial
        before, after, is_done, is_answered = fault(pool.system, name)

        if pool.system.startswith("job_"):  # SQLite answers without a pause
            await asyncio.sleep(before)
            CALL.set(name)
            result = function() if is_done else None
            if after:
                await asyncio.sleep(min(after, timeout_seconds))
            if not (is_done and is_answered) or after > timeout_seconds:
                raise Unavailable(f"the {pool.system} is unavailable; try again", system=pool.system)
            return result

        # A cancelled caller withdraws a call that no thread has taken; one that runs goes on without its caller.
        await asyncio.sleep(before)
        loop = asyncio.get_running_loop()
        running, over = loop.create_task(greenlet_spawn(function)), loop.create_future()

        def end(done: asyncio.Task[Any] | None = None) -> None:
            if done is not None and not done.cancelled():
                done.exception()  # it may have no caller any more
            if not over.done():
                over.set_result(None)

        running.add_done_callback(end)
        limit = loop.call_later(timeout_seconds, end)
        try:
            await over
        finally:
            limit.cancel()
        if not running.done():
            raise Unavailable(f"the {pool.system} did not answer in time", system=pool.system)
        return running.result()

    return call_within


async def _inline(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    return function(*args, **kwargs)


@contextmanager
def machine(seed: int, loop: Loop, fault: CallFault) -> Iterator[None]:
    """Inside the block, the product's code runs on the simulated machine."""
    ids = random.Random(f"ids {seed}")
    state = random.getstate()

    def wall() -> float:
        node = current_node()
        return EPOCH + loop.now + (node.skew_seconds if node is not None else 0.0)

    class Datetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Datetime:
            return cls.fromtimestamp(wall(), tz)

    def monotonic() -> float:
        return 1000.0 + loop.now

    def uuid4() -> uuid.UUID:
        return uuid.UUID(int=ids.getrandbits(128), version=4)

    def sleep(seconds: float) -> None:
        if hasattr(getcurrent(), "__sqlalchemy_greenlet_provider__"):
            pause_inside(seconds)

    patches: list[Any] = [
        mock.patch.object(time, "time", wall),
        mock.patch.object(time, "monotonic", monotonic),
        mock.patch.object(time, "sleep", sleep),
        mock.patch.object(asyncio, "to_thread", _inline),
        mock.patch.object(daemon_thread, "on_daemon_thread", lambda function, name: _inline(function)),
        mock.patch.object(CallPool, "call_within", _pool_call(fault)),
        mock.patch.object(log, "decode_commit", lru_cache(maxsize=64)(decode_commit)),  # seven processes read each
        mock.patch.object(manager, "_OTHERS_NEWS_SECONDS", 4.0),  # half of all work was reading for watchers
        mock.patch.object(routing_store, "FLEET_SECONDS", 8.0),
        *(mock.patch.object(module, "QUANTUM_SECONDS", QUANTUM_SECONDS) for module in (fair_queue, tenant_shares)),
        mock.patch.object(uuid, "uuid4", uuid4),
        mock.patch.object(secrets, "randbits", ids.getrandbits),
        mock.patch.object(secrets, "token_hex", lambda size=16: f"{ids.getrandbits(8 * size):0{2 * size}x}"),
        *(mock.patch.object(importlib.import_module(name), "datetime", Datetime) for name in WITH_DATETIME),
    ]
    random.seed(seed)
    try:
        for patch in patches:
            patch.start()
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()
        random.setstate(state)
