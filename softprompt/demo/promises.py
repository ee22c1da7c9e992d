"""What the demo claims, checked as it goes: a broken promise is shown, and ends in a failing exit code."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape


class PromiseBroken(Exception):
    """The demo can't go on, or ended without everything that it promised."""


class Promises:
    def __init__(self, console: Console) -> None:
        self._console = console
        self.broken: list[str] = []

    def check(self, kept: bool, text: str) -> bool:
        self._console.print(f"  [green]✓[/] {escape(text)}" if kept else f"  [bold red]✗ {escape(text)}[/]", soft_wrap=True)
        if not kept:
            self.broken.append(text)
        return kept
