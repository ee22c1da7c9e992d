"""Threads wait as the services want it, in every process that runs them, unless whoever started it said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys, {package}
assert "torch" not in sys.modules, "too late: libgomp has read its settings"
import os
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize("package", ["trainer_service", "inference_service", "benchmarks"])
@pytest.mark.parametrize(("given", "expected"), [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")])
def test_threads_spin_shortly_unless_told_otherwise(package: str, given: dict[str, str], expected: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", SCRIPT.format(package=package)]
    done = subprocess.run(command, env=clean | given, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == expected
