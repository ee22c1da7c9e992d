"""An event loop whose clock jumps: when all tasks sleep, it is at once the time at which the first one wakes.

For what takes minutes. Nothing in it may wait for a thread or a socket: to the loop, all tasks would be asleep.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from shared.process.call_pool import CallPool

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "all tasks wait for something that virtual time does not bring"
            self.now += timeout
        return ready


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run_in_virtual_time(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine; what it would do in threads happens in the loop."""

    async def to_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    async def call(pool: CallPool, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    monkeypatch.setattr(CallPool, "call", call)
    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        return runner.run(act())
