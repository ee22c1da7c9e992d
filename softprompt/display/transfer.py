"""Bytes on their way: an upload of examples, a download of a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from softprompt.display.status import clock_text, status_display

QUIET_SECONDS = 2.0
"""Without a terminal, work that ends sooner is not shown."""
OnTransfer = Callable[[str, int, int], None]


@contextmanager
def transfer_display(console: Console, title: str) -> Iterator[OnTransfer]:
    """A function to call with the stage ("uploading"), what is done and the total. Before that, `title` is shown."""
    status = TransferStatus(title)
    shown = set[str]()
    with status_display(console, status, transient=True) as display:

        def on_progress(stage: str, done: int, total: int) -> None:
            status.update(stage, done, total)
            if stage not in shown and status.seconds > QUIET_SECONDS:
                shown.add(stage)
                display.show()

        yield on_progress


@contextmanager
def upload_display(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """`transfer_display` for an upload: a function to call with the bytes that are sent and all bytes."""
    with transfer_display(console, title) as show:
        yield lambda sent, total: show("uploading", sent, total)


class TransferStatus:
    """One stage at a time."""

    def __init__(self, title: str) -> None:
        self._stage, self._done, self._total, self._start = title, 0, 0, time.monotonic()

    def update(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` of this stage, in any unit."""
        if stage != self._stage:
            self._start = time.monotonic()
        self._stage, self._done, self._total = stage, done, total

    @property
    def seconds(self) -> float:
        """Since this stage began."""
        return time.monotonic() - self._start

    @property
    def title(self) -> str:
        """See Status."""
        return self._stage

    @property
    def fraction(self) -> float | None:
        """See Status."""
        return self._done / self._total if self._total else None

    @property
    def details(self) -> list[str]:
        """See Status."""
        fraction = self.fraction
        if not fraction:
            return []
        left = clock_text(self.seconds * (1 - fraction) / fraction)
        return [f"{100 * fraction:.0f} %", f"{left} left"]
