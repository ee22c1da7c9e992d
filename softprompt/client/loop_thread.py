"""An event loop in a separate thread that runs coroutines and asynchronous iterators for synchronous callers. anyio's
blocking portal lacks the largest part: iterators that Ctrl-C interrupts between a step's start and the wait for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import AsyncGeneratorType
from typing import Any, TypeVar, TypeVarTuple, cast

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

if sys.platform == "win32":
    _StandardLoop = asyncio.ProactorEventLoop
else:
    _StandardLoop = asyncio.SelectorEventLoop


class _Loop(_StandardLoop):
    """The platform's event loop, which ignores callbacks that come from other threads after it is closed.

    All loops of a process share gRPC's completion queue. The loop of the next client finds the end of a cancelled call
    there and hands it to the loop of that call. Without this class, it would log a traceback if that loop is closed.
    """

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            handle = asyncio.Handle(callback, args, self, context)
            handle.cancel()
            return handle


class LoopThread:
    """Starts an event loop in a thread; `stop` ends it. If Ctrl-C interrupts a caller, its coroutine is cancelled."""

    def __init__(self, name: str) -> None:
        self._loop = _Loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        self.stopped = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result. Raises RuntimeError after `stop` and in the loop's own thread."""
        if self.stopped or threading.current_thread() is self._thread:
            coroutine.close()
            own_loop = "called from the client's own event loop; use AsyncClient there"
            raise RuntimeError("the client is closed" if self.stopped else own_loop)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, iterator: AsyncIterator[T]) -> Iterator[T]:
        """The elements of an asynchronous generator, which is closed when the caller stops iterating."""
        generator, steps = cast("AsyncGeneratorType[T, None]", iterator), set[asyncio.Task[Any]]()
        try:
            while True:
                try:
                    element = self.run(_next(generator, steps))
                except StopAsyncIteration:
                    return
                yield element
        finally:
            if threading.current_thread() is self._thread:  # garbage collection, which runs in any thread, has ended it
                for step in steps:
                    step.cancel()  # nothing refers to the generator any more: the loop closes it
            elif not self.stopped:
                self.run(_close(generator, steps))

    def stop(self) -> None:
        """Cancel all running coroutines and end the thread."""
        if self.stopped:
            return
        self.run(_cancel_others())
        self.stopped = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(generator: AsyncGeneratorType[T, None], steps: set[asyncio.Task[Any]]) -> T:
    task = asyncio.current_task()
    assert task is not None
    steps.add(task)
    try:
        return await anext(generator)
    finally:
        steps.discard(task)


async def _close(generator: AsyncGeneratorType[T, None], steps: set[asyncio.Task[Any]]) -> None:
    """Close a generator after cancelling a running step: Ctrl-C may come between its start and the wait for it."""
    for task in steps:
        task.cancel()
    await asyncio.gather(*steps, return_exceptions=True)
    await generator.aclose()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
