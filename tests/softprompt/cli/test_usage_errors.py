"""What the command line's parser refuses: one sentence in our words, the help as a hint, and exit code 2."""

from __future__ import annotations

import pytest

from tests.softprompt.cli_runner import CliRunner


@pytest.mark.parametrize(
    ("line", "sentence", "hint"),
    [
        ("tune a.csv", "--prompt is missing", "tune"),
        ("tune", "FILE is missing", "tune"),
        ("models pull", "NAME is missing", "models pull"),
        ("tune a.csv --steps x", "--steps 'x': a whole number is expected", "tune"),
        ("generate --temperature hot hi", "--temperature 'hot': a number is expected", "generate"),
        ("up --trainer-port 99999", "--trainer-port '99999': must be at most 65535", "up"),
        ("up --grace -1", "--grace '-1': must be at least 0", "up"),
        (
            "jobs report x --format htm",
            "--format: 'htm' is not one of html, json, csv; do you mean 'html'?",
            "jobs report",
        ),
        ("jobs report x --format foo", "--format: 'foo' is not one of html, json, csv", "jobs report"),
        ("generate --stpo x hi", "there is no option --stpo; do you mean --stop?", "generate"),
        ("jobs list --order x", "there is no option --order", "jobs list"),
        ("chat a b c", "there is no place for the argument b c", "chat"),
        ("jobs lst", "there is no command 'lst'; do you mean 'list'?", "jobs"),
        ("rollback", "there is no command 'rollback'; do you mean 'prompts alias set'?", ""),
        ("tune a.csv --prompt p --init-text x --init random", "--init-text needs --init text", "tune"),
    ],
)
def test_a_command_that_can_not_be_parsed(cli: CliRunner, line: str, sentence: str, hint: str) -> None:
    outcome = cli(*line.split())
    command = f"softprompt {hint}".strip()
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"error: {sentence}\nhint: {command} --help\n"


def test_a_group_alone_shows_its_help(cli: CliRunner) -> None:
    outcome = cli("jobs")
    assert outcome.code == 2
    assert "List jobs, newest first." in outcome.out
    assert "error" not in outcome.err
