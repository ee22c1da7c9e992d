"""`--help` as plain text, of which a narrow terminal loses no word. `docs/cli.md` has the same words."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

_COLUMNS = 100
"""Longer lines are hard to read."""
_MARGIN = 30
"""Columns for names where the meanings stand beside them."""
_NARROW = 72
"""Up to this width, meanings stand below the names."""


def set_help(command: Any) -> None:
    """Give a command, and the commands below it, this help."""
    command.format_help = partial(_write, command)
    for child in getattr(command, "commands", {}).values():
        set_help(child)


def argument_name(item: Any) -> str:
    """An argument in the usage: `FILE`, `[FILE]`, `JOB...`."""
    name = (item.metavar or item.name.upper()).strip("[]{}")
    dots = "..." if item.nargs == -1 and not name.endswith("...") else ""
    return f"{name}{dots}" if item.required else f"[{name}{dots}]"


def usage(path: str, command: Any) -> str:
    """The command with its arguments."""
    arguments = [argument_name(item) for item in command.params if item.param_type_name == "argument"]
    rest = ["COMMAND", "[ARGS]..."] if hasattr(command, "commands") else arguments
    return " ".join([path, "[OPTIONS]", *rest])


def names(item: Any) -> str:
    """The names of an option with its kind of value, or of an argument."""
    if item.param_type_name == "argument":
        return argument_name(item)
    kind = "" if item.is_flag else f" {item.metavar or _kind(item)}"
    options = sorted([*item.opts, *item.secondary_opts], key=lambda name: not name.startswith("--"))
    return ", ".join(options) + kind


def meaning(item: Any) -> str:
    """What an option or argument does, its bounds, default and variable."""
    sentences = [" ".join((item.help or "").split())]
    low, high = getattr(item, "min", None), getattr(item, "max", None)
    if low is not None or high is not None:
        sentences.append(f"At least {low}." if high is None else f"From {low or 0} to {high}.")
    if item.required and item.param_type_name == "option":
        sentences.append("Required.")
    if item.default not in (None, "", False, []) and not item.required and not callable(item.default):
        sentences.append(f"Default: `{_default(item)}`.")
    if item.envvar:
        sentences.append(f"Variable: `{item.envvar}`.")
    return " ".join(sentences)


def _kind(item: Any) -> str:
    kind = item.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(choice.value).lower() for choice in kind)
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def _default(item: Any) -> str:
    if item.default is True:
        return str(item.opts[0])
    return str(item.default.value).lower() if isinstance(item.default, Enum) else str(item.default)


def _write(command: Any, context: Any, formatter: Any) -> None:
    """In place of `command.format_help`."""
    width = min(shutil.get_terminal_size().columns, _COLUMNS)
    formatter.write(_wrapped("Usage: " + usage(context.command_path, command), width, "    "))
    for paragraph in (command.help or "").split("\n\n"):
        formatter.write("\n" + _wrapped(paragraph, width))
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for item in command.get_params(context):
        if not getattr(item, "hidden", False):
            kind = "Arguments" if item.param_type_name == "argument" else "Options"
            rows = sections.setdefault(getattr(item, "rich_help_panel", None) or kind, [])
            rows.append((names(item), meaning(item)))
    children = getattr(command, "commands", {}).items()
    sections["Commands"] = [(name, _first_sentence(child.help or "")) for name, child in children]
    for title, rows in sections.items():
        if rows:
            formatter.write(f"\n{title}:\n" + "".join(_section(rows, width)))
    if command.epilog:
        formatter.write("\n" + _wrapped(command.epilog, width, "    "))


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].removesuffix(".") + "."


def _section(rows: list[tuple[str, str]], width: int) -> Iterable[str]:
    margin = 6 if width <= _NARROW else min(max(len(name) for name, _ in rows) + 4, _MARGIN)
    for name, text in rows:
        lines = _wrapped(text, width, " " * margin, " " * margin)
        if len(name) + 4 <= margin:
            yield "  " + name + lines[len(name) + 2 :]
        else:
            yield _wrapped(name, width, "    ", "  ") + lines


def _wrapped(text: str, width: int, indent: str = "", first: str = "") -> str:
    wrapper = textwrap.TextWrapper(width, first, indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(text) + "\n"
