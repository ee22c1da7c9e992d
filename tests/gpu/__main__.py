"""Checks the engine and the trainer on this machine's GPU, then measures them; results as JSON:

    python -m tests.gpu

The status is 1 if a check fails, or if a benchmark raises. To try the script without a GPU, use `--shape tiny --device
cpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bare import stand_in_for_pydantic
from tests.gpu import DEVICE

CHECKS = Path(__file__).parent / "checks.py"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--shape", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--only", default="", help="an expression of pytest's -k that selects checks")
    arguments = parser.parse_args()
    os.environ[DEVICE] = arguments.device
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a plugin may need what such a machine lacks
    stand_in_for_pydantic()
    started = time.monotonic()
    results: dict[str, Any] = {"checks": run_checks(arguments.only)}
    for name, measure in benchmarks(arguments.shape, arguments.device).items():
        try:
            results[name] = measure()
        except Exception as error:  # the other results are still wanted
            traceback.print_exc()
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    results["seconds"] = time.monotonic() - started
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    checks = results["checks"]
    sound = {"passed"} if arguments.device == "cuda" else {"passed", "skipped"}
    is_sound = bool(checks) and set(checks.values()) <= sound
    return 0 if is_sound and not any("error" in results[name] for name in ("train", "serve")) else 1


def run_checks(only: str) -> dict[str, str]:
    """The outcome of each check by its name: passed, skipped, or the error. `only` as in pytest's -k; empty: all."""
    import pytest

    class Outcomes:
        def __init__(self) -> None:
            self.found: dict[str, str] = {}

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or not report.passed:
                error = report.longreprtext[-2000:] if report.failed else report.outcome
                self.found[report.nodeid.partition("::")[2]] = error

    outcomes = Outcomes()
    # Without the settings and the fixtures of the other tests, which need more packages.
    options = ["-c", os.devnull, "--rootdir", str(CHECKS.parent), "--noconftest", "-p", "no:cacheprovider", "-q"]
    pytest.main([*options, "--import-mode=importlib", "-k", only, str(CHECKS)], plugins=[outcomes])
    return outcomes.found


def benchmarks(shape: str, device: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """The benchmarks for GPUs by name."""
    from benchmarks.serve import gpu_cases as serving
    from benchmarks.train import gpu_cases as training

    tiny = shape == "tiny"
    return {
        "serve": lambda: serving.measure("tiny" if tiny else "8b", device, [1, 3] if tiny else [1, 16, 64]),
        "train": lambda: training.measure("tiny" if tiny else "1b", device, 1 if tiny else 5),
    }


if __name__ == "__main__":
    sys.exit(main())
