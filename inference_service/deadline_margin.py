"""How long before the caller's deadline an answer must end, so that its end arrives; adapts to recent delays."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shared.errors import DeadlineExceeded

LEAST_SECONDS = 0.25
HALF_LIFE_SECONDS = 10.0
"""Time after which the weight of a delay has halved."""
_SAFETY = 2.0
_LARGEST_SHARE = 0.5
"""Maximum part of the remaining time; the rest is for the answer."""
_LOOK_SECONDS = 0.1


class DeadlineMargin:
    """The margin of one event loop. On an idle machine it is `LEAST_SECONDS`, or a tenth of a short deadline.

    The end of an answer waits for the current step of the engine, the event loop and the processor. `ended` and
    `answering` measure this total delay; `watch` measures the event loop's part in advance.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delay_seconds = 0.0
        self._noted_at = clock()

    def seconds(self, remaining_seconds: float) -> float:
        """The margin for a deadline in `remaining_seconds`."""
        least = min(LEAST_SECONDS, remaining_seconds / 10)
        return min(least + _SAFETY * self._recent(), max(least, remaining_seconds * _LARGEST_SHARE))

    def ended(self, deadline: float) -> None:
        """Record that an answer due at `deadline`, on the clock, is now written to its caller."""
        self.note(self._clock() - deadline)

    @contextmanager
    def answering(self, deadline: float | None) -> Iterator[None]:
        """Record the delay of an answer that gets no end: it is cancelled, or has no token, after `deadline`.

        The margin then grows with each late answer until an end arrives.
        """
        try:
            yield
        except (asyncio.CancelledError, DeadlineExceeded):
            if deadline is not None:
                self.ended(deadline)
            raise

    def note(self, delay_seconds: float) -> None:
        """Record a delay; the largest recent one counts and decays."""
        self._delay_seconds, self._noted_at = max(delay_seconds, self._recent()), self._clock()

    async def watch(self) -> None:
        """Measure the delay of the event loop until cancelled."""
        while True:
            due = self._clock() + _LOOK_SECONDS
            await asyncio.sleep(_LOOK_SECONDS)
            self.note(self._clock() - due)

    def _recent(self) -> float:
        return self._delay_seconds * math.exp2((self._noted_at - self._clock()) / HALF_LIFE_SECONDS)
