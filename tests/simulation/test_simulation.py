"""A few lives in `make test`; many in `make simulate`. In a process of their own: they end without any cleanup."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def simulate(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the figures."""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_seeds_keep_every_promise_and_repeat_exactly() -> None:
    status, figures = simulate("--seeds", "1-1", "--twice", "--busy", "25")
    assert not figures["broken"]
    assert status == 0
    assert figures["faults"]


def test_lives_of_each_kind_keep_every_promise() -> None:
    """Some with an object store, some with a directory that loses power, some after an upgrade."""
    status, figures = simulate("--seeds", "1-12")
    assert not figures["broken"]
    assert status == 0
    assert figures["faults"]["power cut"]


def test_a_bug_in_the_product_is_found() -> None:
    status, figures = simulate("--seeds", "1-1", "--stop", "--busy", "25", "--bug", "watch-skips-events")
    assert figures["broken"]
    assert status == 1
