"""The machine under the simulated processes: virtual time, one thread, seeded random numbers, death at any await.

A `Node` is a simulated process. Every task, timer and callback runs in the context of its node. The callbacks of a node
that is down are put aside: a killed process runs no cleanup, and a paused one goes on later as if nothing had happened.
Blocking functions run as greenlets, so that they can be interleaved and stopped at each call to the object store.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import datetime
import heapq
import importlib
import itertools
import random
import secrets
import selectors
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast
from unittest import mock

from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy.util import await_only, greenlet_spawn

from shared.errors import Unavailable
from shared.process import daemon_thread
from shared.process.call_pool import CallPool
from trainer_service.dispatch import manager
from trainer_service.jobs import fair_queue
from trainer_service.jobs.store import tenant_shares

T = TypeVar("T")

EPOCH = 1_700_000_000.0
QUANTUM_SECONDS = 2.0
"""Smallest charge for a job on a worker. Jobs take some seconds here; with a minute, all would cost the same."""
_NODE: contextvars.ContextVar[Node | None] = contextvars.ContextVar("simulated node", default=None)
WITH_DATETIME = (
    "inference_service.prompts.registry",
    "inference_service.prompts.version_loader",
    "shared.prompt.manifest",
    "shared.store.garbage",
    "shared.store.memory",
    "shared.store.replicas",
    "shared.store.usage",
    "shared.store.verify",
    "tests.simulation.world",
    "trainer_service.jobs.model",
)
"""Modules of the simulated code that call `datetime.now`, which can't be replaced in one place."""


class Node:
    """One simulated process. `skew_seconds` is the error of its wall clock."""

    def __init__(self, name: str) -> None:
        self.name, self.up, self.skew_seconds = name, True, 0.0
        self.parked: list[_Handle | _TimerHandle] = []
        """Callbacks that came due while it was down."""


def current_node() -> Node | None:
    """The node whose code runs now; None: the simulation's own."""
    return _NODE.get()


class _NoSelector(selectors.SelectSelector):
    """Nothing in a simulation waits for a socket."""

    def select(self, timeout: float | None = None) -> Any:
        return []


class _Handle(asyncio.Handle):
    """A callback of a node; None: of the simulation itself."""

    __slots__ = ("node",)
    node: Node | None


class _TimerHandle(asyncio.TimerHandle):
    __slots__ = ("node",)
    node: Node | None


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer as soon as nothing is ready.

    It does what asyncio's does, without what a simulation never needs: sockets, signals, threads, debugging.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.tasks: list[tuple[Node | None, asyncio.Task[Any]]] = []
        """Keeps the tasks of killed nodes alive: collecting one would run its cleanup."""
        super().__init__(_NoSelector())
        self.set_task_factory(self._make_task)
        self._ready: collections.deque[_Handle | _TimerHandle] = collections.deque()
        self._scheduled: list[tuple[float, int, _TimerHandle]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        context = contextvars.copy_context() if context is None else context  # an empty one is false
        handle = _Handle(callback, args, self, context)
        handle.node = context.get(_NODE)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        context = contextvars.copy_context() if context is None else context
        handle = _TimerHandle(when, callback, args, self, context)
        handle.node = context.get(_NODE)
        heapq.heappush(self._scheduled, (when, next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It leaves the heap when its time comes."""

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        if not ready:
            while scheduled and scheduled[0][2].cancelled():
                heapq.heappop(scheduled)
            assert scheduled, "every task waits for something that virtual time does not bring"
            self.now = max(self.now, scheduled[0][0])
        while scheduled and scheduled[0][0] <= self.now:
            ready.append(heapq.heappop(scheduled)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            node = handle.node
            if handle.cancelled():
                continue
            if node is None or node.up:
                handle._run()
            else:
                node.parked.append(handle)

    def _make_task(self, loop: Any, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        context = options.get("context")
        self.tasks.append((current_node() if context is None else context.get(_NODE), task))
        if len(self.tasks) > 1000:
            self.tasks = [(node, task) for node, task in self.tasks if not task.done()]
        return task

    def num_tasks(self, node: Node) -> int:
        """How many tasks of the node have not ended."""
        return sum(owner is node and not task.done() for owner, task in self.tasks)


@contextmanager
def by_true_clock() -> Iterator[None]:
    """What happens in the block happens on another machine, whose clock is right."""
    token = _NODE.set(None)
    try:
        yield
    finally:
        _NODE.reset(token)


def kill(node: Node) -> None:
    """The node runs no further instruction."""
    node.up = False


def wake(node: Node) -> None:
    """A paused node goes on; what came due meanwhile happens now."""
    node.up = True
    parked, node.parked = node.parked, []
    cast(Loop, asyncio.get_running_loop())._ready.extend(parked)


def start_on(node: Node, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Begins a coroutine as code of this node."""
    context = contextvars.copy_context()
    context.run(_NODE.set, node)
    return asyncio.get_running_loop().create_task(work, context=context)


def wait_inside(work: Awaitable[T]) -> T:
    """Awaits from a blocking function. The scheduler may run anything else meanwhile."""
    result: T = await_only(work)
    return result


class CooperativeLock:
    """`threading.RLock` for greenlets, which all run in one thread."""

    def __init__(self) -> None:
        self._owner: object = None
        self._depth = 0
        self._waiting: list[asyncio.Future[None]] = []

    def __enter__(self) -> None:
        while self._owner not in (None, getcurrent()):
            if not hasattr(getcurrent(), "__sqlalchemy_greenlet_provider__"):
                raise RuntimeError("an event loop would wait for a lock that a thread holds")
            free = asyncio.get_running_loop().create_future()
            self._waiting.append(free)
            wait_inside(free)
        self._owner, self._depth = getcurrent(), self._depth + 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            waiting, self._waiting = self._waiting, []
            for free in waiting:
                if not free.done():
                    free.set_result(None)


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
            result = function() if is_done else None
            if after:
                await asyncio.sleep(min(after, timeout_seconds))
            if not (is_done and is_answered) or after > timeout_seconds:
                raise Unavailable(f"the {pool.system} is unavailable; try again", system=pool.system)
            return result

        async def run() -> Any:
            return await greenlet_spawn(function)

        # A cancelled caller withdraws a call that no thread has taken; one that runs goes on without its caller.
        await asyncio.sleep(before)
        running = asyncio.get_running_loop().create_task(run())
        running.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([running], timeout=timeout_seconds)
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
            wait_inside(asyncio.sleep(seconds))

    patches: list[Any] = [
        mock.patch.object(time, "time", wall),
        mock.patch.object(time, "monotonic", monotonic),
        mock.patch.object(time, "sleep", sleep),
        mock.patch.object(asyncio, "to_thread", _inline),
        mock.patch.object(daemon_thread, "on_daemon_thread", lambda function, name: _inline(function)),
        mock.patch.object(CallPool, "call_within", _pool_call(fault)),
        mock.patch.object(manager, "_OTHERS_NEWS_SECONDS", 4.0),  # half of all work was reading for watchers
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
