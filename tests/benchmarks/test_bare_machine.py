"""The check of a GPU runs with nothing installed but what it names: every other distribution is made impossible to
import.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

ROOT = Path(__file__).parents[2]
ONLY = "llama or kernel or device"
BLOCKER = """
import sys, runpy
allowed = set(sys.argv.pop(1).split(","))
blocked = set(sys.argv.pop(1).split(",")) - allowed
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hiding, sys.meta_path)
module = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def closure(*names: str) -> set[str]:
    """The distributions and all that they require, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        found.add(name)
        waiting += [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in needed if "extra ==" not in line]
    return found


def test_the_check_of_a_gpu_needs_nothing_but_what_it_names(tmp_path: Path) -> None:
    installed = closure("torch", "transformers", "peft", "safetensors", "pytest")
    packages = packages_distributions()
    allowed = [
        name
        for name, owners in packages.items()
        if any(re.sub(r"[-_.]+", "-", owner).lower() in installed for owner in owners)
    ]
    allowed = [
        name for name in allowed if not name.startswith("pydantic")
    ]  # comes with some releases of transformers, not with all
    ours = {"benchmarks", "shared", "trainer_service", "inference_service"}
    blocked = [name for name in packages if name not in ours]
    assert {"pydantic", "grpc", "ray", "sqlalchemy"} <= set(blocked) - set(allowed)
    output = tmp_path / "out.json"
    arguments = [
        ",".join(allowed),
        ",".join(blocked),
        "tests.gpu",
        "--shape",
        "tiny",
        "--device",
        "cpu",
        "--output",
        str(output),
        "--only",
        ONLY,
    ]
    done = subprocess.run([sys.executable, "-c", BLOCKER, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(output.read_text())
    assert sorted(results["checks"].values()) == ["passed"] * 4 + ["skipped"] * 2
    assert results["train"]["ratio_of_eight_jobs"] > 0
    assert 0 < results["train"]["share_of_matrix_rate"] < 2
    assert [case["batch"] for case in results["serve"]["cases"]] == [1, 3]
    assert all(case["share_of_floor"] > 0 for case in results["serve"]["cases"])
