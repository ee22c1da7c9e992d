"""Output: results go to stdout, everything else to stderr. Tables for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache, partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.process.standard_streams import is_utf8
from softprompt.report.words import number
from softprompt.types.plain import as_plain

_PIPE_COLUMNS = 240
_CELL_COLUMNS = 10
"""A column of a table is at least as wide as its title and, if its cells need them, these columns."""
_TURNING = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""They change the direction of a text."""
_CONTROL = (*range(32), *range(127, 160), 0x2028, 0x2029, *_TURNING)
_ESCAPED = {code: ascii(chr(code))[1:-1] for code in _CONTROL if chr(code) not in "\n\t"}


class _Console(Console):
    """Shows control characters escaped: a text of another caller must not move the cursor or hide a line."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(text.translate(_ESCAPED), **options)


@cache
def stdout() -> Console:
    """The console for results."""
    return _console(stderr=False)


@cache
def stderr() -> Console:
    """The console for progress, reports and errors."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    """As wide as the terminal; elsewhere so wide that grep finds a table's row on a line. `:smile:` stays as it is."""
    make = partial(_Console, stderr=stderr, highlight=False, emoji=False)
    console = make()
    return console if console.is_terminal else make(width=_PIPE_COLUMNS)


def write(text: str) -> None:
    """A part of a model's answer to standard output, as it is; on a terminal, control characters are escaped."""
    sys.stdout.write(text.translate(_ESCAPED) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_json(*values: Any) -> None:
    """Print and flush each value as a line of strict JSON, with ASCII escapes if the output's encoding isn't UTF-8."""
    for value in values:
        text = json.dumps(as_plain(value), ensure_ascii=not is_utf8(sys.stdout), allow_nan=False)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def table(*columns: str) -> Table:
    """A table without frames, which is easy to cut and grep."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def show(value: Table | str) -> None:
    """Print a result. A text is never wrapped. On a terminal too narrow for a table, each row is a block of lines."""
    if isinstance(value, Table) and _least_width(value) > stdout().width:
        value = "\n\n".join(_blocks(value))
    stdout().print(value, soft_wrap=isinstance(value, str), markup=False)


def show_or_json(value: Any, text: str, as_json: bool) -> None:
    """Print a result: the value as JSON for scripts, or a text for people."""
    if as_json:
        print_json(value)
    else:
        show(text)


def show_facts(facts: Mapping[str, str], width: int = 11) -> None:
    """Print each fact that is not empty on a line, its name padded to `width` characters."""
    for name, text in facts.items():
        if text:
            show(f"{name:<{width}}{text}")


def agreed(question: str) -> bool:
    """Asks on stderr; whether the answer on standard input is yes."""
    stderr().print(f"{question} [y/N] ", end="", markup=False)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _columns(value: Table) -> list[tuple[str, list[str]]]:
    """Titles and cells."""
    return [(str(column.header), [str(cell) for cell in column.cells]) for column in value.columns]


def _least_width(value: Table) -> int:
    """Columns of a terminal on which the table can be read."""
    widths = [max(len(title), min(_CELL_COLUMNS, max(map(len, cells), default=0))) for title, cells in _columns(value)]
    return sum(widths) + len(widths) - 1


def _blocks(value: Table) -> Iterator[str]:
    """Each row as lines of title and cell, without empty cells."""
    columns = _columns(value)
    for row in zip(*(cells for _, cells in columns), strict=True):
        named = zip((title for title, _ in columns), row, strict=True)
        yield "\n".join(f"{title} {cell}" for title, cell in named if cell)


def local_time(time: datetime | None) -> str:
    """`2030-01-31 12:00:00` in this machine's time zone; empty for None."""
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def numbers(metrics: Any) -> str:
    """Metrics on one line: `loss 1.234  token_accuracy 0.71`."""
    return "  ".join(f"{name} {number(value)}" for name, value in sorted(metrics.items()))
