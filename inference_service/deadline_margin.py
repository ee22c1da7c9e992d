"""How long before a caller's deadline an answer has to end, so that its end still gets there: as long as ends lately
took on the way.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

LEAST_SECONDS = 0.25
HALF_LIFE_SECONDS = 10.0
"""After so long without another one a delay counts half."""
_SAFETY = 2.0
_LARGEST_SHARE = 0.5
"""Of the time that the caller gave: what stays is for the answer."""
_LOOK_SECONDS = 0.1


class DeadlineMargin:
    """For one event loop. On an idle machine the margin is `LEAST_SECONDS`, or a tenth of a short deadline.

    The end of an answer waits for the engine's step that is under way, for the event loop and for the processor.
    `ended` measures all of that where it happens; `watch` measures the event loop before it happens.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delay_seconds = 0.0
        self._noted_at = clock()

    def seconds(self, remaining_seconds: float) -> float:
        """Of a deadline that is so far away."""
        least = min(LEAST_SECONDS, remaining_seconds / 10)
        return min(least + _SAFETY * self._recent(), max(least, remaining_seconds * _LARGEST_SHARE))

    def ended(self, deadline: float) -> None:
        """An answer that had to end at `deadline`, on the clock, is about to be written to its caller."""
        self.note(self._clock() - deadline)

    def note(self, delay_seconds: float) -> None:
        """The worst recent delay counts, and fades."""
        self._delay_seconds, self._noted_at = max(delay_seconds, self._recent()), self._clock()

    async def watch(self) -> None:
        """Note how late the event loop runs what is due, until cancelled."""
        while True:
            due = self._clock() + _LOOK_SECONDS
            await asyncio.sleep(_LOOK_SECONDS)
            self.note(self._clock() - due)

    def _recent(self) -> float:
        return self._delay_seconds * math.exp2((self._noted_at - self._clock()) / HALF_LIFE_SECONDS)
