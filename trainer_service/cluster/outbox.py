"""Numbered events on their way from a worker's step thread to whoever polls. Bounded, however long nobody does.

An event is forgotten once a poll asks for what comes after it: until then a lost answer loses nothing. While nobody
polls, only the latest of a job's checkpoints and step reports are kept; every other event is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from trainer_service.training.events import Checkpointed, StepDone, TrainingEvent

_MANY = 512
"""Step reports are thinned out from this many waiting events on."""


class Outbox:
    """Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, TrainingEvent]] = []
        self._last = 0
        self._woken = False

    def put(self, events: Sequence[TrainingEvent]) -> None:
        with self._changed:
            for event in events:
                self._forget_superseded(event)
                self._last += 1
                self._waiting.append((self._last, event))
            if events:
                self._changed.notify_all()

    def wake(self) -> None:
        """Let a waiting poll return now, though there is no event."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def take(self, since: int, timeout_seconds: float) -> tuple[int, tuple[TrainingEvent, ...]]:
        """(number of the last one, events after `since`); waits for the first. Empty after the time-out or a wake."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._waiting = [(number, event) for number, event in self._waiting if number > since]
            while not self._waiting and not self._woken:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            self._woken = False
            last = self._waiting[-1][0] if self._waiting else since
            return last, tuple(event for _, event in self._waiting)

    def _forget_superseded(self, event: TrainingEvent) -> None:
        replaced = Checkpointed if isinstance(event, Checkpointed) else StepDone
        if not isinstance(event, (Checkpointed, StepDone)) or (replaced is StepDone and len(self._waiting) < _MANY):
            return
        self._waiting = [
            (number, old)
            for number, old in self._waiting
            if not (isinstance(old, replaced) and old.job_id == event.job_id)
        ]
