"""A bounded queue of numbered events from a worker's step thread to polls.

An event is dropped only when a poll asks for later ones, so a lost answer loses no events. Of a job's waiting
checkpoints only the latest is kept; if many events wait, also of its step reports. All other events are kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from trainer_service.training.events import Checkpointed, StepDone, TrainingEvent

_MANY = 512
"""With this many waiting events, only the latest step report of each job is kept."""


class Outbox:
    """The queue. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, TrainingEvent]] = []
        self._last = 0
        self._woken = False

    def put(self, events: Sequence[TrainingEvent]) -> None:
        """Append events and wake a waiting `take`."""
        with self._changed:
            for event in events:
                self._forget_superseded(event)
                self._last += 1
                self._waiting.append((self._last, event))
            if events:
                self._changed.notify_all()

    def wake(self) -> None:
        """Make a waiting `take`, or the next one, return even without an event."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def take(self, since: int, timeout_seconds: float) -> tuple[int, tuple[TrainingEvent, ...]]:
        """Wait for events after `since`. Returns (last number, events); no events after the time-out or `wake`."""
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
