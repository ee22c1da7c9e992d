"""Native libraries get the services' settings in every process, unless its environment overrides them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
SCRIPT = """
import sys, {package}
assert "torch" not in sys.modules, "too late: its libraries have read their settings"
import os
print({{name: os.environ[name] for name in {names} if name in os.environ}})
"""
DEFAULTS = {"GOMP_SPINCOUNT": "20000", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"}
OWN = {"GOMP_SPINCOUNT": "7", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "5"}
OLD_NAMES = {"OMP_WAIT_POLICY": "active", "DNNL_PRIMITIVE_CACHE_CAPACITY": "9"}


@pytest.mark.parametrize("package", ["trainer_service", "inference_service", "benchmarks"])
@pytest.mark.parametrize(("given", "expected"), [({}, DEFAULTS), (OWN, OWN), (OLD_NAMES, OLD_NAMES)])
def test_defaults_are_set_before_torch_and_give_way(
    package: str, given: dict[str, str], expected: dict[str, str]
) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-c", SCRIPT.format(package=package, names=NAMES)]
    done = subprocess.run(command, env=clean | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected)
