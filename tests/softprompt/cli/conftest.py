"""The command line within the test's process."""

from __future__ import annotations

import pytest

from tests.softprompt.cli_runner import CliRunner


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CliRunner:
    return CliRunner(monkeypatch, capsys)
