"""The progress of a job below a notebook's cell. IPython shows it; nothing here is imported outside of a notebook."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from typing import Any

from softprompt.display.training import TrainingStatus
from softprompt.types.events import JobEvent, Note, StateChanged

_SECONDS = 0.5
"""Shortest time between two updates of the shown text."""
_BAR = 24


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    kernel = sys.modules.get("ipykernel")
    ipython: Any = sys.modules.get("IPython")
    return kernel is not None and ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def notebook_progress(name: str, wanted: bool | None) -> Iterator[Callable[[JobEvent], object]]:
    """A function to call with each event of the job. Shows nothing unless `wanted`; None: in notebooks only."""
    if wanted is None:
        wanted = in_notebook()
    if not wanted:
        yield lambda event: None
    elif in_notebook():
        yield _Cell(name).update
    else:
        from rich.console import Console

        from softprompt.display.training import training_display

        with training_display(Console(stderr=True, highlight=False, emoji=False), name) as show:
            yield show


class _Cell:
    """One text that is replaced. Events come from the client's thread."""

    def __init__(self, name: str) -> None:
        ipython: Any = import_module("IPython.display")
        self._html, self._status, self._notes = ipython.HTML, TrainingStatus(name), list[str]()
        self._shown_at, self._lock = 0.0, threading.Lock()
        self._handle: Any = ipython.display(self._html(self._text()), display_id=True)

    def update(self, event: JobEvent) -> None:
        """Take the event over. The text changes twice a second at most, and at once for a new state or a note."""
        with self._lock:
            self._status.update(event)
            if isinstance(event, Note):
                self._notes.append(event.text)
            now = time.monotonic()
            if isinstance(event, Note | StateChanged) or now - self._shown_at >= _SECONDS:
                self._shown_at = now
                self._handle.update(self._html(self._text()))

    def _text(self) -> str:
        fraction = self._status.fraction
        done = 0 if fraction is None else round(_BAR * min(1.0, max(0.0, fraction)))
        bar = "" if fraction is None else "━" * done + "─" * (_BAR - done)
        lines = ["  ".join(filter(None, [self._status.title, bar, *self._status.details])), *self._notes]
        return f"<pre>{escape(chr(10).join(lines))}</pre>"
