"""The progress of an upload on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def upload_display(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A function to call with the bytes that are sent and all bytes. Where there is no terminal, every quarter is a line."""
    if not console.is_terminal:
        yield _in_lines(console)
        return
    columns = TextColumn("uploading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("uploading", total=None)
        yield lambda sent, total: progress.update(task, completed=sent, total=total)


def _in_lines(console: Console) -> Callable[[int, int], None]:
    """Nothing for an upload that is over at once."""
    shown = 0

    def show(sent: int, total: int) -> None:
        nonlocal shown
        quarter = 4 * sent // max(1, total)
        if total > _SILENT_BYTES and quarter > shown:
            shown = quarter if quarter < 4 else 0  # a second file may follow
            console.print(f"uploaded {sent / 1e6:.0f} of {total / 1e6:.0f} MB", markup=False)

    return show


_SILENT_BYTES = 8 << 20
