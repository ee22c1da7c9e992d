"""The status of long work: a few lines that are redrawn on a terminal; elsewhere, for logs, one line a minute."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Sequence
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

LINE_SECONDS = 60.0
BAR_COLUMNS = 24
_GAP = "  "


class Status(Protocol):
    """The state of the work. The thread that reads it is not the one that changes it."""

    @property
    def title(self) -> str:
        """What the work is, and its state."""

    @property
    def fraction(self) -> float | None:
        """The part that is done, 0 to 1; None if that is not known."""

    @property
    def details(self) -> list[str]:
        """Short texts such as "step 3/20", the most important one first."""


def status_display(
    console: Console, status: Status, line_seconds: float = LINE_SECONDS, *, transient: bool = False
) -> StatusLines | LiveStatus:
    """A context manager that shows the status until it is left: redrawn lines if the console is a terminal, else a line
    every `line_seconds`. Its methods may be called from any thread. `transient`: removed at the end.
    """
    return LiveStatus(console, status, transient) if console.is_terminal else StatusLines(console, status, line_seconds)


class StatusLines:
    """A line at once for each change that matters, and one after each `line_seconds`."""

    def __init__(self, console: Console, status: Status, line_seconds: float) -> None:
        self._console, self._status, self._line_seconds = console, status, line_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show_regularly, name="status-lines", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def show(self) -> None:
        """Show the status at once: it has changed in a way that a reader waits for."""
        self.note(_GAP.join([self._status.title, *self._status.details]))

    def note(self, text: str) -> None:
        """Print a sentence that stays."""
        self._console.print(text, markup=False, soft_wrap=True)

    def _show_regularly(self) -> None:
        """A timer and not the work's own reports decides when: work that hangs reports nothing."""
        while not self._over.wait(self._line_seconds):
            with contextlib.suppress(OSError):  # a closed stderr ends no work
                self.show()


class LiveStatus:
    """Lines at the bottom of the terminal, redrawn until the work ends."""

    def __init__(self, console: Console, status: Status, transient: bool = False) -> None:
        self._console, self._status = console, status
        self._spinner = Spinner("line" if console.options.ascii_only else "dots")
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=10,
            transient=transient,
            # rich would write the output that goes to a file or pipe to this console
            redirect_stdout=sys.stdout.isatty(),
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self) -> None:
        """Nothing to do: the lines are redrawn ten times a second."""

    def note(self, text: str) -> None:
        """Print a sentence that stays."""
        self._console.print(text, markup=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        width, fraction = self._console.width, self._status.fraction
        frame = self._spinner.render(self._console.get_time())
        parts = [Text.assemble(frame if isinstance(frame, Text) else "", " ", self._status.title)]
        if fraction is not None:
            parts.append(_bar(fraction, min(BAR_COLUMNS, width), self._console.options.ascii_only))
        return Group(*flow([*parts, *map(Text, self._status.details)], width))


def flow(parts: Sequence[Text], width: int) -> list[Text]:
    """Lines of at most `width` columns with as many parts each as fit. No part is broken; a longer one is cut."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + len(_GAP) + part.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], _GAP, part)
        else:
            lines.append(part.copy())
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _bar(fraction: float, columns: int, ascii_only: bool) -> Text:
    done = round(columns * min(1.0, max(0.0, fraction)))
    full, empty = ("#", "-") if ascii_only else ("━", "─")
    return Text.assemble((full * done, "bar.complete"), (empty * (columns - done), "bar.back"))


def clock_text(seconds: float) -> str:
    """`1:05`, or `2:01:05` from an hour on. Negative is 0."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
