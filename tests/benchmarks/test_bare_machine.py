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

import pytest

from tests.gpu import DEVICE
from tests.gpu import __main__ as gpu_check

ROOT = Path(__file__).parents[2]
ONLY = "llama or kernel or device"
CHECKS = {
    "test_greedy_answers_in_float32_are_those_of_the_model[llama]": "passed",
    "test_log_probabilities_in_bfloat16_are_within_five_percent[llama]": "passed",
    "test_packed_gradients_are_those_of_padded_rows[llama]": "passed",
    "test_an_attention_kernel_is_right_at_full_length_in_every_batch[32-8-128]": "skipped",
    "test_an_attention_kernel_is_right_at_full_length_in_every_batch[9-3-64]": "skipped",
    "test_the_device_chooses_the_tokens_that_the_cpu_chooses": "skipped",
}
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
    assert results["checks"] == CHECKS
    assert results["train"]["ratio_of_eight_jobs"] > 0
    assert 0 < results["train"]["share_of_matrix_rate"] < 2
    assert [case["batch"] for case in results["serve"]["cases"]] == [1, 3]
    assert all(case["share_of_floor"] > 0 for case in results["serve"]["cases"])


def test_an_error_of_a_benchmark_is_printed_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks() -> None:
        raise ValueError("no such size")

    for name in (DEVICE, "PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        monkeypatch.setenv(name, "")  # to restore it
    monkeypatch.setattr(gpu_check, "stand_in_for_pydantic", lambda: None)
    monkeypatch.setattr(gpu_check, "run_checks", lambda _: {"one": "passed"})
    monkeypatch.setattr(gpu_check, "benchmarks", lambda *_: {"serve": breaks, "train": dict})
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path / "out.json")])
    assert gpu_check.main() == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["serve"] == {"error": "ValueError: no such size"}
    assert "in breaks" in printed.err
