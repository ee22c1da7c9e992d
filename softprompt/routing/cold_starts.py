"""Calls that wait for a base model's first replica, because the model is scaled to zero while nothing asks for it.

The number of waiting calls is what the autoscaler sees, so a call makes the replica start that it waits for. Both the
wait and the number and size of the calls are bounded.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from shared.errors import Overloaded

METHODS = frozenset({"Generate", "GenerateStream", "Score", "CountTokens"})
"""Methods whose calls wait. Those that ask about replicas don't start any."""
_LOOK_SECONDS = 0.1
_RETRY_SECONDS = 5.0


class ColdStarts:
    """Use it in one event loop."""

    def __init__(
        self,
        longest: Callable[[], Mapping[str, float]] = dict,
        max_waiting: int = 0,
        is_leaving: Callable[[], bool] = lambda: False,
        max_waiting_bytes: int = 0,
    ) -> None:
        """`longest()`: the longest wait in seconds, by id, for each base model that starts on demand. `is_leaving()`:
        whether this process is to end, and so holds no more calls.
        """
        self._longest, self._max_waiting, self._is_leaving = longest, max_waiting, is_leaving
        self._max_waiting_bytes, self._waiting_bytes = max_waiting_bytes, 0
        self._waiting = Counter[str]()

    @property
    def base_models(self) -> list[str]:
        """Ids of the base models that start on demand."""
        return list(self._longest())

    def waiting(self) -> dict[str, int]:
        """The number of waiting calls of each of them."""
        return {base_model: self._waiting[base_model] for base_model in self._longest()}

    async def wait(self, base_model: str, num_bytes: int, has_replica: Callable[[], bool], began: float) -> bool:
        """Wait until `has_replica()`, with a request of `num_bytes`. False after the longest wait since `began` (the
        loop's time). Raises Overloaded if too many calls or bytes wait; one alone may have any size.
        """
        loop = asyncio.get_running_loop()
        with self._counted(base_model, num_bytes):
            while loop.time() - began < self._longest().get(base_model, 0) and not self._is_leaving():
                if has_replica():
                    return True
                await asyncio.sleep(_LOOK_SECONDS)
        return False

    @contextmanager
    def _counted(self, base_model: str, num_bytes: int) -> Iterator[None]:
        number = self._waiting.total()
        too_large = number > 0 and self._waiting_bytes + num_bytes > self._max_waiting_bytes
        if too_large or number >= self._max_waiting:
            held = f", which hold {self._waiting_bytes} bytes" if too_large else ""
            text = f"too many calls wait for replicas to start: {number}{held}"
            raise Overloaded(text, retry_after_seconds=_RETRY_SECONDS)
        self._waiting[base_model] += 1
        self._waiting_bytes += num_bytes
        try:
            yield
        finally:
            self._waiting[base_model] -= 1
            self._waiting_bytes -= num_bytes
