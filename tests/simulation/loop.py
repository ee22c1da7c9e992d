"""The event loop of simulated processes: virtual time, one thread, death at any await.

A `Node` is a simulated process. Every task, timer and callback runs in the context of its node. The callbacks of a node
that is down are put aside: a killed process runs no cleanup, and a paused one goes on later as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import functools
import heapq
import itertools
import selectors
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy.util import await_only

T = TypeVar("T")

_NODE: contextvars.ContextVar[Node | None] = contextvars.ContextVar("simulated node", default=None)


class Node:
    """One simulated process. `skew_seconds` is the error of its wall clock."""

    def __init__(self, name: str) -> None:
        self.name, self.up, self.is_killed, self.skew_seconds = name, True, False, 0.0
        self.parked: list[_Handle] = []
        """Callbacks that came due while it was down."""


def current_node() -> Node | None:
    """The node whose code runs now; None: the simulation's own."""
    return _NODE.get()


class _NoSelector(selectors.SelectSelector):
    """Nothing in a simulation waits for a socket."""

    def select(self, timeout: float | None = None) -> Any:
        return []


class _Handle:
    """A callback or timer (`asyncio.TimerHandle`) of a node; None: of the simulation itself."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "node")

    def __init__(self, callback: Any, args: tuple[Any, ...], context: contextvars.Context | None) -> None:
        self.callback, self.args, self.is_cancelled = callback, args, False
        self.context = contextvars.copy_context() if context is None else context  # an empty one is false
        self.node: Node | None = self.context.get(_NODE)

    def cancel(self) -> None:
        """It leaves the queue when its time comes."""
        self.is_cancelled = True

    def cancelled(self) -> bool:
        """Whether it was."""
        return self.is_cancelled


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer as soon as nothing is ready.

    It does what asyncio's does, without what a simulation never needs: sockets, signals, threads, debugging.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.tasks: list[tuple[Node | None, asyncio.Task[Any]]] = []
        """Keeps the tasks of killed nodes alive: collecting one would run its cleanup."""
        super().__init__(_NoSelector())
        self.create_future = functools.partial(asyncio.Future, loop=self)  # type: ignore[method-assign]
        self.set_task_factory(self._make_task)
        self._ready: collections.deque[_Handle] = collections.deque()
        self._scheduled: list[tuple[float, int, _Handle]] = []
        self._numbers = itertools.count()

    get_debug = staticmethod(bool)  # False; asked for each future and task, so without a call of Python code

    def time(self) -> float:
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:
        handle = _Handle(callback, args, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:
        handle = _Handle(callback, args, context)
        heapq.heappush(self._scheduled, (self.now + delay, next(self._numbers), handle))
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:
        handle = _Handle(callback, args, context)
        heapq.heappush(self._scheduled, (when, next(self._numbers), handle))
        return handle

    def _run_once(self) -> None:
        """All of the loop, because a call of a function for each moment costs more than most moments."""
        ready, scheduled = self._ready, self._scheduled
        while not self._stopping:  # type: ignore[attr-defined]
            if not ready:
                while scheduled and scheduled[0][2].is_cancelled:
                    heapq.heappop(scheduled)
                assert scheduled, "every task waits for something that virtual time does not bring"
                self.now = max(self.now, scheduled[0][0])
            while scheduled and scheduled[0][0] <= self.now:
                ready.append(heapq.heappop(scheduled)[2])
            for _ in range(len(ready)):
                handle = ready.popleft()
                if handle.is_cancelled:
                    continue
                node = handle.node
                if node is None or node.up:
                    try:
                        handle.context.run(handle.callback, *handle.args)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:
                        self.call_exception_handler({"message": "a callback failed", "exception": error})
                else:
                    node.parked.append(handle)

    def _make_task(self, loop: Any, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        context = options.get("context")
        self.tasks.append((current_node() if context is None else context.get(_NODE), task))
        if len(self.tasks) > 1000:
            self.tasks = [(node, task) for node, task in self.tasks if not task.done()]
        return task

    def num_tasks(self) -> collections.Counter[Node | None]:
        """How many tasks of each node have not ended."""
        return collections.Counter(owner for owner, task in self.tasks if not task.done())


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
    node.up, node.is_killed = False, True


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


def pause_inside(seconds: float) -> None:
    """Waits in a blocking function. The scheduler may run anything else meanwhile."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.call_later(seconds, over.set_result, None)
    await_only(over)


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
