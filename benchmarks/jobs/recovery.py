"""How long it takes until a job goes on after each fault: the fault tests are run, and asked to note what they see."""

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
    """Seconds by fault. Raises CalledProcessError if a test fails: a figure of a recovery that failed would mean nothing."""
    with tempfile.TemporaryDirectory() as directory:
        notes = Path(directory) / "recovery.json"
        for path in TESTS:
            subprocess.run([sys.executable, "-m", "pytest", "-q", path], env=os.environ | {VARIABLE: str(notes)}, check=True)
        found: dict[str, float] = json.loads(notes.read_text())
        return found
