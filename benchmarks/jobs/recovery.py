"""Measures the time until a job resumes after each fault, by running the fault tests, which record their times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.recovery import VARIABLE

TESTS = (
    "tests/trainer_service/cluster/test_ray_faults.py",
    "tests/trainer_service/cluster/test_service_kill.py",
    "tests/trainer_service/cluster/test_replica_kill.py",
    "tests/trainer_service/cluster/test_node_loss.py",
    "tests/trainer_service/dispatch/test_storage_faults.py",
    "tests/trainer_service/dispatch/test_replicas.py",
)


def measure() -> dict[str, float]:
    """Seconds by fault. Raises CalledProcessError if a test fails, because the times of a failed recovery are
    meaningless.
    """
    with tempfile.TemporaryDirectory() as directory:
        notes = Path(directory) / "recovery.json"
        for path in TESTS:
            subprocess.run(
                [sys.executable, "-m", "pytest", "-q", path], env=os.environ | {VARIABLE: str(notes)}, check=True
            )
        found: dict[str, float] = json.loads(notes.read_text())
        return found
