"""The claims of the demo. Each one is checked; a broken one is shown, and the exit code is a failure."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape


class PromiseBroken(Exception):
    """The demo can't continue, or one of its claims did not hold."""


class Promises:
    """Prints claims and collects the broken ones."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.broken: list[str] = []

    def check(self, kept: bool, text: str) -> bool:
        """Print the claim `text` and whether it holds. Returns `kept`."""
        line = f"  [green]✓[/] {escape(text)}" if kept else f"  [bold red]✗ {escape(text)}[/]"
        self._console.print(line, soft_wrap=True)
        if not kept:
            self.broken.append(text)
        return kept
