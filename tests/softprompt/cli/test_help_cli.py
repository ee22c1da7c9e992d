"""`--help` of every command: complete, with an example, and quick."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from softprompt.cli.main import app
from tests.softprompt.cli_runner import CliRunner


def commands_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands_of(child, (*path, name))


WRITTEN = dict(commands_of(typer.main.get_command(app)))
"""Every command with its help as it is written, by its path."""
WITHOUT_EXAMPLE = {("models", "fingerprint"), ("tokens", "new"), ("tokens", "hash")}
COMMANDS = [path for path, command in WRITTEN.items() if not getattr(command, "commands", None)]


@pytest.mark.parametrize("command", [path for path in COMMANDS if path not in WITHOUT_EXAMPLE], ids=" ".join)
def test_every_command_has_help_with_an_example(cli: CliRunner, command: Any) -> None:
    outcome = cli(*command, "--help")
    assert outcome.code == 0
    assert f"Example:  softprompt {' '.join(command)}" in outcome.out


def test_the_root_help_lists_exit_codes(cli: CliRunner) -> None:
    assert "Exit codes" in cli("--help").out


def test_help_imports_neither_grpc_nor_torch_nor_ray() -> None:
    code = "import sys; sys.argv = ['softprompt', '--help']\nfrom softprompt.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "heavy = {'grpc', 'torch', 'ray', 'transformers', 'google.protobuf'} & set(sys.modules)\n"
    code += "assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: " ".join(path) or "softprompt")
def test_help_shows_every_word_that_is_written(path: Any, cli: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = " ".join(cli(*path, "--help").out.split())
    command = WRITTEN[path]
    for item in (command, *(one for one in command.params if not getattr(one, "hidden", False))):
        written = " ".join((getattr(item, "help", None) or "").split())
        assert written in shown, f"{written!r} is not in the help"
        assert all(name in shown for name in getattr(item, "opts", ()) if name.startswith("-"))


def test_ctrl_c_while_the_modules_load_ends_the_command_in_silence() -> None:
    code = """
import sys
class CtrlC:
    def find_spec(name, *rest):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, CtrlC)
import softprompt.cli
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
