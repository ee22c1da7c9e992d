"""Calls that wait for a base model's first replica, because the model is scaled to zero while nothing asks for it.

The number of waiting calls is what the autoscaler sees, so a call makes the replica start that it waits for. Both the
wait and the number of calls are bounded.
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
    ) -> None:
        """`longest()`: the longest wait in seconds, by id, for each base model that starts on demand. `is_leaving()`:
        whether this process is to end, and so holds no more calls.
        """
        self._longest, self._max_waiting, self._is_leaving = longest, max_waiting, is_leaving
        self._waiting = Counter[str]()

    @property
    def base_models(self) -> list[str]:
        """Ids of the base models that start on demand."""
        return list(self._longest())

    def waiting(self) -> dict[str, int]:
        """The number of waiting calls of each of them."""
        return {base_model: self._waiting[base_model] for base_model in self._longest()}

    async def wait(self, base_model: str, has_replica: Callable[[], bool], began: float) -> bool:
        """Wait until `has_replica()`. Returns False if the longest wait, counted from `began` in the loop's time, is
        over. Raises Overloaded if too many calls wait.
        """
        loop = asyncio.get_running_loop()
        with self._counted(base_model):
            while loop.time() - began < self._longest().get(base_model, 0) and not self._is_leaving():
                if has_replica():
                    return True
                await asyncio.sleep(_LOOK_SECONDS)
        return False

    @contextmanager
    def _counted(self, base_model: str) -> Iterator[None]:
        if self._waiting.total() >= self._max_waiting:
            raise Overloaded(
                f"{self._max_waiting} calls wait for replicas to start", retry_after_seconds=_RETRY_SECONDS
            )
        self._waiting[base_model] += 1
        try:
            yield
        finally:
            self._waiting[base_model] -= 1
