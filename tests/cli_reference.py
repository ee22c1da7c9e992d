"""Writes `docs/cli.md` from the commands: `python -m tests.cli_reference`. A test checks that it is current."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from softprompt.cli.failures import EXIT_CODES_HELP
from softprompt.cli.main import app

PAGE = Path(__file__).parents[1] / "docs/cli.md"
_BEGIN = f"""# Command line

Generated from the code by `python -m tests.cli_reference`; change the commands' texts there. Every command shows the
same with `--help`. `--json` prints one JSON object on each line, for scripts.

{EXIT_CODES_HELP}

Options before the command set TLS and the token; each has a variable ([security](security.md)):
"""


def reference() -> str:
    """The page."""
    root: Any = typer.main.get_command(app)
    parts = [_BEGIN, *_table([item for item in root.params if not item.name.endswith("_completion")])]
    for words, command in _commands(root, ("softprompt",)):
        parts += [f"\n## {' '.join(words[1:])}\n", _paragraph(command.help), "\n```sh", _usage(words, command)]
        if command.epilog:
            parts.append(command.epilog.removeprefix("Example:  "))
        parts += ["```\n", *_table([item for item in command.params if item.name != "help"])]
    return "\n".join(parts).rstrip() + "\n"


def _commands(group: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*words, name))
        elif not command.hidden:
            yield (*words, name), command


def _usage(words: tuple[str, ...], command: Any) -> str:
    arguments = [_argument(item) for item in command.params if item.param_type_name == "argument"]
    return " ".join([*words, "[OPTIONS]", *arguments])


def _argument(item: Any) -> str:
    name = (item.metavar or item.name.upper()).strip("[]{}")
    dots = "..." if item.nargs == -1 and not name.endswith("...") else ""
    return f"{name}{dots}" if item.required else f"[{name}{dots}]"


def _table(params: list[Any]) -> list[str]:
    if not params:
        return []
    rows = ["| option | meaning |", "|---|---|"]
    for item in params:
        if item.param_type_name == "argument":
            names = _argument(item)
        else:
            names = ", ".join([*item.opts, *item.secondary_opts])
            if not item.is_flag:
                names += f" {item.metavar or _kind(item)}"
        meaning = [_paragraph(item.help or "")]
        if item.required and item.param_type_name == "option":
            meaning.append("Required.")
        if item.default not in (None, "", False, []) and not item.required and not callable(item.default):
            meaning.append(f"Default: `{_default(item.default)}`.")
        if item.envvar:
            meaning.append(f"Variable: `{item.envvar}`.")
        rows.append(f"| `{_cell(names)}` | {_cell(' '.join(meaning))} |")
    return rows


def _kind(item: Any) -> str:
    kind = item.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(choice.value).lower() for choice in kind)
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def _default(value: Any) -> str:
    return str(value.value).lower() if isinstance(value, Enum) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _paragraph(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
