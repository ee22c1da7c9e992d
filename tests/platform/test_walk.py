"""The commands of docs/platform.md are a valid script. `python -m tests.platform` runs them, which takes minutes."""

import subprocess

from tests.platform.__main__ import script


def test_the_commands_are_a_valid_script() -> None:
    commands = script()
    assert commands.count("== ") == commands.count("echo '== ") > 5
    assert subprocess.run(["bash", "-n"], input=commands, text=True, capture_output=True, check=True).stderr == ""
