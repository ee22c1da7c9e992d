"""Writes `docs/cli.md` from the commands: `python -m tests.cli_reference`. A test checks that it is current."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from softprompt.cli.failures import EXIT_CODES_HELP
from softprompt.cli.help_text import meaning, names, usage
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
        parts += [f"\n## {' '.join(words[1:])}\n", _paragraph(command.help), "\n```sh", usage(" ".join(words), command)]
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


def _table(params: list[Any]) -> list[str]:
    shown = [item for item in params if not getattr(item, "hidden", False)]
    rows = [f"| `{_cell(names(item))}` | {_cell(meaning(item))} |" for item in shown]
    return ["| option | meaning |", "|---|---|", *rows] if rows else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _paragraph(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
