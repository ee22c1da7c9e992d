"""`make chaos` in small: one kill. It uses all parts of the stack, so a change to any could break it unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.trainer_service.postgres import find_binaries

pytestmark = pytest.mark.slow


@pytest.mark.skipif(find_binaries() is None, reason="PostgreSQL is not installed")
def test_a_stack_heals_after_a_kill() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--kills", "1", "--kinds", "gateway", "--of-each", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert not figures["broken"]
    assert done.returncode == 0
    assert figures["kills"] == {"gateway": 1}
    assert figures["events"]["streamed"]
