"""Threads that compute masks while the model computes the step. Tenants take turns."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from shared.fair_turns import FairTurns

log = logging.getLogger(__name__)

NUM_THREADS = 2
"""llguidance releases the interpreter; a mask usually takes some ten microseconds, so two threads keep up."""


class MaskWorkers:
    """Runs short functions in daemon threads, which start with the first function and end with `close`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._turns: FairTurns[Callable[[], None]] = FairTurns()
        self._started = self._closed = False

    def submit(self, tenant: str, function: Callable[[], None]) -> None:
        """Run the function soon. It must not raise."""
        with self._changed:
            self._turns.add(tenant, function)
            if not self._started:
                self._started = True
                for number in range(NUM_THREADS):
                    threading.Thread(target=self._work, name=f"mask {number}", daemon=True).start()
            self._changed.notify()

    def close(self) -> None:
        """End the threads after the functions that they run now."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            tenant, function = taken
            try:
                function()
            except Exception:
                log.exception("a mask could not be computed")
            with self._changed:
                self._turns.finish(tenant)

    def _take(self) -> tuple[str, Callable[[], None]] | None:
        with self._changed:
            while not self._closed:
                taken = self._turns.start_next(lambda tenant: NUM_THREADS)
                if taken is not None:
                    return taken
                self._changed.wait()
            return None
