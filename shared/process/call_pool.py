"""Runs blocking calls to one external system (prompt store, database, hub) in separate threads with a time limit.

If a system accepts calls and never answers, only its callers get errors; other work is not affected. Threads are
daemons, so a call that never returns does not keep the process from ending.

Tenants take turns, and none may hold all threads: long or numerous calls delay only the tenant that makes them.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from shared.caller import tenant_of_work
from shared.errors import Unavailable
from shared.fair_turns import SERVICE, FairTurns, places_of_one

log = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

OPEN_SECONDS = 600.0
"""Time limit for opening a system: a snapshot of a store's whole index, or a database's migrations."""
_OPEN_PAUSE_SECONDS = 1.0
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.1, 5.0
_LONGEST_PROBE_PAUSE_SECONDS = 3600.0


@dataclass(frozen=True)
class PoolStats:
    """Statistics of one pool; `timed_out` and `refused` are totals since its start."""

    system: str
    in_flight: int
    """Calls that run in a thread."""
    overdue: int
    """Calls in flight that have exceeded their time limit; their callers already got an error."""
    waiting: int
    """Calls that wait for a thread."""
    timed_out: int
    refused: int
    """Calls that failed at once because every thread was busy with an overdue call."""


@dataclass(eq=False)
class _Call:
    run: Callable[[], Any]
    timeout_seconds: float
    holder: str = field(default_factory=tenant_of_work)
    future: Future[Any] = field(default_factory=Future)
    started_at: float = 0.0

    @property
    def is_overdue(self) -> bool:
        return time.monotonic() - self.started_at > self.timeout_seconds


class CallPool:
    """Runs at most `max_threads` calls at a time. Use it from any event loop; `close` it from any thread.

    A call that exceeds its time limit raises Unavailable, and its thread stays busy until the call returns. While all
    threads that a tenant may use are busy with such calls, further calls of that tenant fail at once. If the overdue
    calls never return, a spare thread is added from time to time to test whether the system answers new calls. There
    are never more spare threads than regular ones.
    """

    def __init__(self, system: str, *, max_threads: int = 8, timeout_seconds: float = 30.0) -> None:
        """`system` is the system's name in metrics, for example "prompt_store"; errors write it with spaces."""
        self.system, self.timeout_seconds = system, timeout_seconds
        self._name = system.replace("_", " ")
        self._max_threads, self._num_spare = max_threads, 0
        self._changed = threading.Condition()
        self._turns: FairTurns[_Call] = FairTurns()
        self._running: set[_Call] = set()
        self._num_threads = 0
        self._num_idle = 0
        self._num_timed_out = self._num_refused = 0
        self._next_probe_at, self._probe_pause_seconds = 0.0, timeout_seconds
        self._closed = False

    async def call(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run the function in a thread and return or raise its result. Raises Unavailable after the pool's time limit.

        The limit includes the time spent waiting for a thread. A call that timed out may still take effect later:
        repeat it only if it is safe to repeat. If the caller is cancelled before a thread took the call, it never runs.
        """
        return await self.call_within(self.timeout_seconds, functools.partial(function, *args, **kwargs))

    async def call_within(self, timeout_seconds: float, function: Callable[[], Result]) -> Result:
        """Like `call`, with another time limit, for calls that are known to take long."""
        call = _Call(functools.partial(contextvars.copy_context().run, function), timeout_seconds)
        self._submit(call)
        answer: asyncio.Future[Result] = asyncio.wrap_future(call.future)
        try:
            await asyncio.wait({answer}, timeout=timeout_seconds)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
            self._withdraw(call)
        with self._changed:
            self._num_timed_out += 1
        log.warning(
            "an external system did not answer in time",
            extra={"fields": {"system": self.system, "seconds": timeout_seconds}},
        )
        raise Unavailable(
            f"the {self._name} did not answer within {timeout_seconds:g} s; try again", system=self.system
        )

    async def retry(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Repeat `call` with growing pauses while it raises Unavailable. The function must be safe to repeat."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self.call(function, *args, **kwargs)
            except Unavailable as error:
                if self._closed:
                    raise
                log.warning("trying again in about %.1f s: %s", pause, error.message)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(_LAST_PAUSE_SECONDS, pause * 2)

    async def open(self, function: Callable[[], Result]) -> Result:
        """Open a system at the start of a process: wait until it is available, and log why not. Raises other errors."""
        reason = ""
        while True:
            try:
                return await self.call_within(OPEN_SECONDS, function)
            except Unavailable as error:
                if error.message != reason:
                    log.warning("not started yet: %s", error.message)
                reason = error.message
                await asyncio.sleep(_OPEN_PAUSE_SECONDS * random.uniform(0.5, 1.5))

    def stats(self) -> PoolStats:
        """The pool's current statistics. Safe to call from any thread."""
        with self._changed:
            overdue = sum(call.is_overdue for call in self._running)
            in_flight, waiting = len(self._running), len(self._turns)
            return PoolStats(self.system, in_flight, overdue, waiting, self._num_timed_out, self._num_refused)

    def close(self) -> None:
        """Refuse further calls and end idle threads. Does not wait for calls in flight."""
        with self._changed:
            self._closed = True
            for call in self._turns:
                call.future.cancel()
            self._turns.clear()
            self._changed.notify_all()

    def _submit(self, call: _Call) -> None:
        with self._changed:
            if self._closed:
                raise Unavailable(f"the service is stopping and no longer calls the {self._name}", system=self.system)
            self._turns.add(call.holder, call)
            if self._num_idle < self._turns.num_ready(self._limit_of) or self._is_stuck(call.holder):
                self._add_thread(call.holder)
            if overdue := self._is_stuck(call.holder):
                self._turns.remove(call.holder, call)
                self._num_refused += 1
                raise Unavailable(
                    f"the {self._name} does not answer: {overdue} calls are overdue; try again later",
                    system=self.system,
                )
            self._changed.notify()

    def _withdraw(self, call: _Call) -> None:
        """Drop a call that no thread has taken."""
        if call.future.cancel():
            with self._changed:
                self._turns.remove(call.holder, call)

    def _limit_of(self, holder: str) -> int:
        """Threads that one tenant may hold."""
        return (self._max_threads if holder == SERVICE else places_of_one(self._max_threads)) + self._num_spare

    def _is_stuck(self, holder: str) -> int:
        """Number of overdue calls that occupy all threads that this tenant may use; 0 if a thread is usable."""
        blocking = self._running
        if len(blocking) < self._max_threads + self._num_spare:
            blocking = {call for call in self._running if call.holder == holder}
            if len(blocking) < self._limit_of(holder):
                return 0
        return len(blocking) if all(call.is_overdue for call in blocking) else 0

    def _add_thread(self, holder: str) -> None:
        """Start another thread if the limits allow it."""
        if self._num_threads < self._max_threads + self._num_spare or self._may_probe(holder):
            self._num_threads += 1
            threading.Thread(target=self._work, name=f"{self._name} {self._num_threads}", daemon=True).start()

    def _may_probe(self, holder: str) -> bool:
        """Whether to add a spare thread now. The pauses double, so that the limited spare threads last for hours."""
        now = time.monotonic()
        if self._num_spare >= self._max_threads or not self._is_stuck(holder):
            return False
        if not self._next_probe_at:
            self._next_probe_at = now + self._probe_pause_seconds
        if now < self._next_probe_at:
            return False
        self._probe_pause_seconds = min(2 * self._probe_pause_seconds, _LONGEST_PROBE_PAUSE_SECONDS)
        self._next_probe_at = now + self._probe_pause_seconds
        self._num_spare += 1
        return True

    def _work(self) -> None:
        """Main loop of a thread."""
        while (call := self._take()) is not None:
            result, error = None, None
            try:
                result = call.run()
            except BaseException as raised:
                error = raised
            self._finished(call)
            if error is not None:
                call.future.set_exception(error)
            else:
                call.future.set_result(result)
            del call, result, error  # an idle thread must not keep objects alive

    def _take(self) -> _Call | None:
        """Wait for the next call that has not been cancelled; None if this thread must end."""
        with self._changed:
            while True:
                while (started := self._turns.start_next(self._limit_of)) is not None:
                    holder, call = started
                    if call.future.set_running_or_notify_cancel():
                        call.started_at = time.monotonic()
                        self._running.add(call)
                        return call
                    self._turns.finish(holder)
                if self._closed or self._num_threads > self._max_threads + self._num_spare:
                    self._num_threads -= 1
                    return None
                self._num_idle += 1
                self._changed.wait()
                self._num_idle -= 1

    def _finished(self, call: _Call) -> None:
        with self._changed:
            self._running.discard(call)
            self._turns.finish(call.holder)
            if not any(running.is_overdue for running in self._running):  # the system answers: end the spare threads
                self._num_spare, self._next_probe_at, self._probe_pause_seconds = 0, 0.0, self.timeout_seconds
